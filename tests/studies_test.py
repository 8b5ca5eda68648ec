"""The studies: claims about points that their sweeps have, equal FLOPs, statistics, and a page made of the results."""

import dataclasses
import json
import math
import pathlib

import pytest

from studies import __main__ as program
from studies import claims, curves, flops, intervals, records, tables
from studies.claims import Claim, Study
from studies.paper import STUDIES
from studies.records import Results, Run
from switch_jax import gin_files
from switch_jax.config import SweepConfig
from switch_jax.sweep.points import make_points, point_arguments

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIN = ROOT / 'studies' / 'gin'


def points_of(name):
  sweep, _ = gin_files.load_run([str(GIN / f'{name}.gin')], root=SweepConfig)
  return make_points(sweep)


SWEEPS = sorted(path.stem for path in GIN.glob('*.gin') if 'SweepConfig' in path.read_text())


@pytest.mark.parametrize('name', SWEEPS)
def test_claims_are_about_points_of_three_seeds_whose_configuration_loads(monkeypatch, name):
  monkeypatch.chdir(ROOT)
  study = STUDIES[name]
  seeds, counted = {}, {}
  for point in points_of(name):
    files, bindings = point_arguments(point, [f'studies/gin/{file}' for file in study.files], (), '/some/dir')
    run, _ = gin_files.load_run(files, bindings)
    short = point.name.rpartition(',RANDOM_SEED=')[0]
    seeds.setdefault(short, set()).add(run.random_seed)
    is_choice = run.random_seed >= 100
    of_languages = run.data.mixture_or_task_name == 'multilingual_span_corruption'
    halves = ('train_sample', 'validation') if of_languages else ('validation_odd', 'validation_even')
    assert run.data.eval_split == halves[0 if is_choice else 1]
    assert is_choice == (not study.claims)
    if short in study.equal_flops and short not in counted:
      counted[short] = flops.of_run(run)
  assert min(map(len, seeds.values())) >= (3 if study.claims else 2)
  assert sorted(counted) == sorted(study.equal_flops)
  assert all(count == pytest.approx(counted[study.equal_flops[0]], rel=0.01) for count in counted.values())
  if study.needs:
    seeds |= dict.fromkeys(f'{study.needs}/{p.name.rpartition(",RANDOM")[0]}' for p in points_of(study.needs))
  assert {point for claim in study.claims for point in claim.points} <= set(seeds)


def test_every_study_has_its_sweep():
  assert sorted(STUDIES) == SWEEPS


def test_the_dense_model_has_the_flops_of_the_experts(monkeypatch):
  monkeypatch.chdir(ROOT)
  base = ['--gin_file=studies/gin/base.gin', '--gin.MODEL_DIR=/some/dir']
  switch = [*base, '--gin_file=studies/gin/switch.gin']
  count = flops.per_target_token
  for width, experts in ((56, 32), (48, 16), (72, 64)):
    dense = count([*base, f'--gin.config.ModelConfig.mlp_dim={width}'])
    assert dense == pytest.approx(count([*switch, f'--gin.NUM_EXPERTS={experts}']), rel=1e-9)
  large = count([*base, '--gin_file=studies/gin/large.gin'])
  assert large / count([*switch, '--gin.NUM_EXPERTS=32']) == pytest.approx(3.5, abs=0.05)


@pytest.mark.parametrize(('factor', 'expected'), [(1.0, 75_093), (1.25, 77_483), (2.0, 84_651)])
def test_slots_cost_the_same_whoever_fills_them(monkeypatch, factor, expected):
  monkeypatch.chdir(ROOT)
  switch = ['--gin_file=studies/gin/base.gin', '--gin_file=studies/gin/switch.gin', '--gin.MODEL_DIR=/d']
  switch += [f'--gin.CAPACITY_FACTOR={factor}']
  count = flops.per_target_token
  assert round(count(switch)) == round(count([*switch, '--gin_file=studies/gin/top2.gin'])) == expected


def test_interval_of_paired_seeds():
  found = intervals.estimate([1.0, 2.0, 3.0])
  assert found.mean == 2.0
  assert found.deviation == pytest.approx(1.0)
  assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)  # t(0.975, 2 degrees of freedom)
  assert math.isinf(intervals.estimate([1.0]).half_width)


@pytest.mark.parametrize(
  ('values', 'above', 'near', 'said'),
  [
    ([0.10, 0.11, 0.12], 0.0, None, 'agrees'),
    ([-0.10, -0.11, -0.12], 0.0, None, 'disagrees'),
    ([-0.1, 0.1, 0.2], 0.0, None, 'cannot tell'),
    ([0.10], 0.0, None, 'cannot tell'),
    ([2.0, 2.1, 2.2], 3.0, None, 'disagrees'),
    ([0.001, 0.002, 0.001], 0.0, (-0.01, 0.01), 'agrees'),
    ([0.02, 0.021, 0.022], 0.0, (-0.01, 0.01), 'disagrees'),
    ([0.0, 0.02, 0.01], 0.0, (-0.01, 0.01), 'cannot tell'),
    ([math.inf, 0.1, 0.1], 0.0, None, 'cannot tell'),
  ],
)
def test_the_verdict_on_one_claim(values, above, near, said):
  assert intervals.verdicts([(intervals.estimate(values), above, near)]) == [said]


def test_the_verdict_on_one_of_many_claims_needs_more():
  weak = intervals.estimate([0.01, 0.02, 0.03, 0.015])  # p = 0.024
  assert intervals.verdicts([(weak, 0.0, None)]) == ['agrees']
  nothing = intervals.estimate([-1.0, 1.0, -0.5, 0.6])
  assert intervals.verdicts([(weak, 0.0, None), *[(nothing, 0.0, None)] * 3]) == ['cannot tell'] * 4


def test_holm_by_hand():
  assert intervals.corrected([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])


def test_what_could_have_been_seen_is_seen_in_four_of_five_studies():
  import numpy as np
  from scipy import stats

  effect = intervals.smallest_visible(1.0, 10)
  values = np.random.default_rng(0).normal(effect, 1.0, (4000, 10))
  seen = stats.ttest_1samp(values, 0.0, axis=1).pvalue < 0.05
  assert seen.mean() == pytest.approx(0.8, abs=0.025)
  assert intervals.smallest_visible(1.0, intervals.seeds_needed(1.0, 0.5)) <= 0.5
  assert math.isinf(intervals.smallest_visible(1.0, 1))


def test_steps_to_reach_a_loss():
  reach = curves.steps_to_reach
  curve = [(0, 4.0), (100, 3.0), (200, 3.2), (300, 2.0)]
  assert reach(curve, 3.5) == 50
  assert reach(curve, 3.0) == 100
  assert reach(curve, 2.6) == 250
  assert reach(curve, 1.9) is None
  assert reach(curve, 3.1) == pytest.approx(90)
  assert reach(curve, 3.1, 'last') == pytest.approx(200 + 100 / 12)
  assert reach(curve, 3.5, 'last') == 50
  assert reach(curve, 1.9, 'last') is None


def test_steps_saved_for_the_lowest_loss_so_far():
  slow = [(0, 4.0), (100, 3.0), (200, 3.5), (300, 2.0), (400, 2.5), (500, 0.5)]
  fast = [(0, 4.0), (50, 2.0), (100, 1.0)]
  assert curves.saved(slow, fast) == [
    (0, 0.0),
    (100, 100 / 25),
    (200, 100 / 25),  # it is back where it was; what it needed is still 100 steps
    (300, 300 / 50),
    (400, 300 / 50),
  ]


def run(curve, **fields):
  return Run(
    **{'curve': tuple(curve), 'trained': {}, 'held_out': {}, 'parameters': 1000, 'flops': 5.0, 'seconds': 1.0, **fields}
  )


def results(name, runs, **fields):
  known = {'study': name, 'code': 'c', 'commit': 'abc', 'versions': {'jax': '1'}, 'corpus': 'text', 'runs': runs}
  return Results(**{**known, **fields})


def test_a_claim_of_fewer_steps():
  of_seed = {'dense': run([(0, 4.0), (100, 3.0), (200, 2.0)]), 'experts': run([(0, 4.0), (100, 1.0)])}
  claim = claims.fewer_steps('experts', 'dense', 'text', 'paper')
  assert claim.measure(of_seed) == pytest.approx(200 / (100 * 2 / 3))
  again = claims.fewer_steps('dense', 'experts', 'text', 'paper')
  assert math.isnan(again.measure(of_seed))
  assert again.at_most(of_seed) == 100 / 200


def test_what_a_student_keeps():
  losses = {'dense': 3.0, 'teacher': 2.0, 'student': 2.75, 'other': 2.9}
  of_seed = {name: run([(10, loss)], held_out={'example_accuracy': 1 - loss / 4}) for name, loss in losses.items()}
  assert claims.kept('student', 'teacher', 'dense', '', '').measure(of_seed) == pytest.approx(25)
  assert claims.kept('student', 'teacher', 'dense', '', '', tuned=True).measure(of_seed) == pytest.approx(25)
  assert claims.kept('student', 'teacher', 'dense', '', '', than='other').measure(of_seed) == pytest.approx(15)
  assert math.isnan(claims.kept('student', 'dense', 'teacher', '', '').measure(of_seed))
  assert claims.more_right('teacher', 'dense', '', '').measure(of_seed) == pytest.approx(25)


def a_study():
  """Three claims: one that holds, one that too few seeds cannot tell, one that takes points of another study."""
  study = Study(
    title='a title',
    minutes=1,
    claims=(
      claims.gain('good', 'dense', 'good is better', '0.1'),
      claims.gain('noisy', 'dense', 'noisy is better', '0.02'),
      Claim(text='elsewhere', paper='none', measure=lambda r: 1.0, points=('before/dense',)),
    ),
  )
  found = {
    'dense': {seed: run([(0, 4.0), (10, 3.0)]) for seed in range(3)},
    'good': {seed: run([(0, 4.0), (10, 2.5 + seed / 1000)], trained={'fraction_dropped': 0.25}) for seed in range(3)},
    'noisy': {seed: run([(0, 4.0), (10, 3.0 + (-1) ** seed * 0.1)]) for seed in range(4)},
  }
  return {'now': study}, {'now': results('now', found)}


def test_the_table_says_what_follows_and_what_does_not():
  studies, found = a_study()
  judged = claims.judge(studies, found)
  assert [row.verdict for row in judged['now']] == ['agrees', 'cannot tell', 'cannot tell']
  lines = tables.page(studies, judged, found).splitlines()
  (good,) = (line for line in lines if 'good is better' in line)
  assert good == '| good is better | 0.1 | 0.499 ± 0.0025 nats | 3 | 0.0031 | agrees |'
  (noisy,) = (line for line in lines if 'noisy is better' in line)
  assert 'cannot tell (' in noisy
  assert 'seeds would be needed for 0.02)' in noisy
  assert '| elsewhere | none | not run here | 0 |  |  |' in lines
  assert '| good | 0.001M | 0.0k | 2.5010 ± 0.0010 (3 seeds) |  | 25.0% |  |' in lines


def test_what_a_claim_would_have_been_alone_is_said():
  weak = {seed: run([(0, 4.0), (10, 3.0 - gain)]) for seed, gain in enumerate((0.01, 0.02, 0.03, 0.015))}  # p = 0.024
  points = {'dense': {seed: run([(0, 4.0), (10, 3.0)]) for seed in range(4)}, 'weak': weak}
  gain = claims.gain('weak', 'dense', 'weak is better', '0.02', effect=0.02)
  for count, said in ((1, '| agrees |'), (3, '| cannot tell (alone it agrees) |')):
    studies, found = {'now': Study(title='', minutes=1, claims=(gain,) * count)}, {'now': results('now', points)}
    lines = tables.claims_table(studies, claims.judge(studies, found)).splitlines()
    assert [line.endswith(said) for line in lines if 'weak is better' in line] == [True] * count


def test_the_best_of_the_learning_rates_stands_out():
  runs = {
    f'{model},LEARNING_RATE={rate}': {100: run([(0, 4.0), (10, loss)])}
    for model, losses in (('dense', (3.0, 2.0, 2.5)), ('experts_4', (1.5, 1.75, 9.0)))
    for rate, loss in zip(('0.33', '1.0', '3.0'), losses, strict=True)
  }
  assert tables.choices_table(results('learning_rates', runs), 'LEARNING_RATE').splitlines() == [
    '| model | LEARNING_RATE 0.33 | LEARNING_RATE 1.0 | LEARNING_RATE 3.0 |',
    '| --- | --- | --- | --- |',
    '| dense | 3.0000 | **2.0000** | 2.5000 |',
    '| experts 4 | **1.5000** | 1.7500 | 9.0000 |',
  ]


@pytest.mark.parametrize('name', sorted(tables.CHOICES))
def test_the_studies_have_the_best_of_the_learning_rates(monkeypatch, name):
  monkeypatch.chdir(ROOT)
  if not (found := records.load(name)):
    pytest.skip(f'no results of {name} yet')
  best = {model: min(losses, key=losses.get) for model, losses in tables.choices(found, tables.CHOICES[name]).items()}
  name = {'horizon_rates': 'horizon'}.get(name, name)  # the others have the best as the rate that their grid changes
  sweep, _ = gin_files.load_run([str(GIN / f'{name}.gin')], root=SweepConfig)
  used = {}
  for point in make_points(dataclasses.replace(sweep, grid={}, seeds=sweep.seeds[:1])):
    files, bindings = point_arguments(point, [f'studies/gin/{file}' for file in STUDIES[name].files], (), '/some/dir')
    run, _ = gin_files.load_run(files, bindings)
    used[point.name.rpartition(',RANDOM_SEED=')[0]] = run.optimizer.learning_rate
  assert used == {model: float(rate) for model, rate in best.items()}


def test_a_claim_about_languages():
  steps = (0, 100, 200)
  groups = {'de': (4.0, 3.0, 2.0), 'fr': (4.0, 3.5, 3.0), 'xx': (4.0, 9.0, 9.0)}
  slow = run(zip(steps, (4.0,) * 3, strict=True), groups=groups, group_tokens={'de': 6000, 'fr': 5000, 'xx': 10})
  faster = {'de': (4.0, 2.0, 1.0), 'fr': (4.0, 3.6, 3.2), 'xx': (4.0, 0.0, 0.0)}
  of_seed = {'dense': slow, 'experts': run(slow.curve, groups=faster, group_tokens=slow.group_tokens)}
  measure = lambda number: claims.by_language('experts', 'dense', number, '', '', '').measure(of_seed)  # noqa: E731
  assert measure(claims.language_gain) == pytest.approx((1.0 - 0.2) / 2)
  # German: at 2.0 after 100 of 200 steps; French: the dense twin is at 3.2 after 160 of 200.
  assert measure(claims.language_speed_up) == pytest.approx((2.0 + 0.8) / 2)


def test_results_come_back_from_their_file(tmp_path):
  _, found = a_study()
  path = records.write(found['now'], tmp_path)
  assert '[0, 4.0]' in path.read_text()
  assert records.load('now', tmp_path) == found['now']
  assert records.load('none', tmp_path) is None


def write_run(folder, code, corpus, made_with=''):
  """Writes of a finished run what the results are read from."""
  (folder / 'eval' / 'task').mkdir(parents=True)
  (folder / 'eval' / 'task' / 'metrics.jsonl').write_text(
    '{"step": 1, "cross_ent_loss_text": 2.0, "example_accuracy": 0.5}\n'
  )
  (folder / 'train').mkdir()
  (folder / 'train' / 'metrics.jsonl').write_text('{"step": 1, "fraction_dropped": 0.5, "cross_ent_loss_text": 2.5}\n')
  (folder / 'checkpoints' / '1' / 'data').mkdir(parents=True)
  (folder / 'checkpoints' / '1' / 'config.json').write_text(f'{{"parameters": 7{made_with}}}')
  position = f'{{"fingerprint": {{"corpus": "{corpus}"}}}}'
  (folder / 'checkpoints' / '1' / 'data' / 'position.json').write_text(position)
  (folder / 'finished.json').write_text(f'{{"arguments": [], "seconds": 3.0, "code": "{code}"}}')


def test_runs_of_another_version_are_left_out_and_said(tmp_path, monkeypatch):
  monkeypatch.setattr(flops, 'per_target_token', lambda arguments: 9.0)
  for seed, code, corpus in ((0, 'new', 'a'), (1, 'new', 'a'), (2, 'old', 'a'), (3, 'new', 'b')):
    write_run(tmp_path / 'some' / f'dense,RANDOM_SEED={seed}', code, corpus)
  found, (note,) = records.read_runs('some', tmp_path)
  assert (found.code, found.corpus) == ('new', 'a')
  assert found.runs == {'dense': dict.fromkeys((0, 1), found.runs['dense'][0])}
  assert found.runs['dense'][0] == Run(
    curve=((1, 2.0),),
    trained={'fraction_dropped': 0.5, 'cross_ent_loss_text': 2.5},
    held_out={'example_accuracy': 0.5},
    parameters=7,
    flops=9.0,
    seconds=3.0,
  )
  assert '2 of 4 runs are of another version' in note
  assert records.read_runs('none', tmp_path) == (None, [])


def test_where_runs_were_made_is_what_they_say(tmp_path, monkeypatch):
  """Not where they are read: that may be another machine, with another version of the code checked out."""
  monkeypatch.setattr(flops, 'per_target_token', lambda arguments: 9.0)
  packages = dict.fromkeys(('jax', 'flax', 'optax', 'numpy'), '9')
  known = ({'device': 'TPU v4', 'packages': packages}, {'device': 'cpu', 'packages': {}}, None)
  for seed, made_with in enumerate(known):
    text = f', "made_with": {json.dumps(made_with)}' if made_with else ''
    write_run(tmp_path / 'some' / f'dense,RANDOM_SEED={seed}', 'other', 'a', text)
  found, _ = records.read_runs('some', tmp_path)
  assert found.device == 'TPU v4 and cpu and not recorded'
  assert found.versions == dict.fromkeys(packages, '9 and not recorded')
  assert found.commit == ''
  study = Study(title='some study', minutes=1, claims=())
  made = tables.page({'some': study}, {'some': []}, {'some': found})
  assert 'Code other, of a commit that is not known, jax 9 and not recorded, ' in made
  monkeypatch.setattr(records, 'code_digest', lambda: 'other')
  assert len(records.read_runs('some', tmp_path)[0].commit.rstrip('+')) in (0, 12)  # 0: sources without git


def test_the_page_follows_from_the_results():
  assert program.PAGE.read_text() == program.with_page(program.PAGE.read_text(), program.make_page())


def test_runs_are_set_aside_and_not_deleted(tmp_path, capsys):
  for text in ('one', 'two'):
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'run').write_text(text)
    program.set_aside('x', tmp_path)
  assert [(tmp_path / f'x.{n}' / 'run').read_text() for n in (1, 2)] == ['one', 'two']
  program.set_aside('x', tmp_path)  # nothing is there
  assert capsys.readouterr().out.count('is') >= 2


def test_an_estimate_is_of_finite_numbers():
  assert dataclasses.astuple(intervals.estimate([1.0, 1.0]))[1:] == (1.0, 0.0, 0.0)
  assert intervals.p_values(intervals.estimate([1.0, 1.0]), 0.0, None) == (0.0, 1.0)
