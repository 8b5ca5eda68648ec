"""The studies of benchmarks/study: their statistics, and that every claim is about runs that its sweep has."""

import importlib
import json
import math
import pathlib
import sys

import pytest

from switch_jax import gin_files
from switch_jax.config import SweepConfig
from switch_jax.sweep.points import make_points, point_arguments

ROOT = pathlib.Path(__file__).resolve().parent.parent
HERE = ROOT / 'benchmarks' / 'study'


@pytest.fixture(scope='module')
def modules():
  """The modules of the folder, which is a program and no package."""
  names = ('measures', 'studies', 'flops', 'pictures', 'speedup')
  sys.path.insert(0, str(HERE))
  try:
    yield {name: importlib.import_module(name) for name in names}
  finally:
    sys.path.remove(str(HERE))
    for name in names:
      sys.modules.pop(name, None)


def points_of(name):
  sweep, _ = gin_files.load_run([str(HERE / f'{name}.gin')], root=SweepConfig)
  return make_points(sweep)


STUDIES = sorted(path.stem for path in HERE.glob('*.gin') if 'SweepConfig' in path.read_text())


@pytest.mark.parametrize('name', STUDIES)
def test_claims_are_about_points_of_three_seeds_whose_configuration_loads(modules, monkeypatch, name):
  monkeypatch.chdir(ROOT)
  study = modules['studies'].STUDIES[name]
  points = points_of(name)
  seeds = {}
  for point in points:
    files, bindings = point_arguments(point, [f'benchmarks/study/{file}' for file in study.files], (), '/some/dir')
    run, _ = gin_files.load_run(files, bindings)
    seeds.setdefault(point.name.rpartition(',RANDOM_SEED=')[0], set()).add(run.random_seed)
  assert all(len(found) == 3 for found in seeds.values())
  if study.needs:
    seeds |= dict.fromkeys(f'{study.needs}/{p.name.rpartition(",RANDOM")[0]}' for p in points_of(study.needs))
  assert {point for claim in study.claims for point in claim.points} <= set(seeds)


def test_every_study_has_its_sweep(modules):
  assert sorted(modules['studies'].STUDIES) == STUDIES


def test_the_dense_model_has_the_flops_of_the_experts(modules, monkeypatch):
  monkeypatch.chdir(ROOT)
  base = ['--gin_file=benchmarks/study/base.gin', '--gin.MODEL_DIR=/some/dir']
  switch = [*base, '--gin_file=benchmarks/study/switch.gin']
  count = modules['flops'].per_target_token
  for width, experts in ((56, 32), (48, 16)):
    dense = count([*base, f'--gin.config.ModelConfig.mlp_dim={width}'])
    assert dense == pytest.approx(count([*switch, f'--gin.NUM_EXPERTS={experts}']), rel=1e-9)
  large = count([*base, '--gin_file=benchmarks/study/large.gin'])
  assert large / count([*switch, '--gin.NUM_EXPERTS=32']) == pytest.approx(3.5, abs=0.05)


@pytest.mark.parametrize(('factor', 'flops'), [(1.0, 75_093), (1.25, 77_483), (2.0, 84_651)])
def test_slots_cost_the_same_whoever_fills_them(modules, monkeypatch, factor, flops):
  monkeypatch.chdir(ROOT)
  switch = ['--gin_file=benchmarks/study/base.gin', '--gin_file=benchmarks/study/switch.gin', '--gin.MODEL_DIR=/d']
  switch += [f'--gin.CAPACITY_FACTOR={factor}']
  count = modules['flops'].per_target_token
  assert round(count(switch)) == round(count([*switch, '--gin_file=benchmarks/study/top2.gin'])) == flops
  assert f'both {flops:,} a target token' in (ROOT / 'docs' / 'results.md').read_text() or factor != 1.25


def test_interval_of_paired_seeds(modules):
  found = modules['measures'].estimate([1.0, 2.0, 3.0])
  assert found.mean == 2.0
  assert found.deviation == pytest.approx(1.0)
  assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)  # t(0.975, 2 degrees of freedom)
  assert math.isinf(modules['measures'].estimate([1.0]).half_width)


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
def test_verdict(modules, values, above, near, said):
  measures = modules['measures']
  assert measures.verdict(measures.estimate(values), above, near) == said


def test_steps_to_reach_a_loss(modules):
  reach = modules['measures'].steps_to_reach
  curve = [(0, 4.0), (100, 3.0), (200, 3.2), (300, 2.0)]
  assert reach(curve, 3.5) == 50
  assert reach(curve, 3.0) == 100
  assert reach(curve, 2.6) == 250
  assert reach(curve, 1.9) is None


def test_a_claim_of_fewer_steps(modules, tmp_path):
  folders = {}
  for name, losses in (('dense', {0: 4.0, 100: 3.0, 200: 2.0}), ('experts', {0: 4.0, 100: 1.0})):
    folders[name] = tmp_path / name
    folder = folders[name] / 'eval' / modules['measures'].TASK
    folder.mkdir(parents=True)
    lines = [json.dumps({'step': step, 'cross_ent_loss_text': loss}) for step, loss in losses.items()]
    (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  claim = modules['studies'].fewer_steps('experts', 'dense', 'text', 'paper')
  assert claim.measure(folders) == pytest.approx(200 / (100 * 2 / 3))
  again = modules['studies'].fewer_steps('dense', 'experts', 'text', 'paper')
  assert math.isnan(again.measure(folders))
  assert again.at_most(folders) == 100 / 200
