"""The command: refused before the first run, restarts, a failing point beside others, commands for a queue.

The runs are stand-ins of one line, so that only the sweep itself is tested.
"""

import csv
import fcntl
import json
import shlex
import subprocess
import sys
import time

import pytest

from switch_jax.sweep import __main__ as sweep
from switch_jax.sweep import runner
from tests.patience import HUNG

BASE = ('gin/models/switch_tiny.gin', 'gin/runs/pretrain.gin')
GIVEN = ('MIXTURE_OR_TASK_NAME=some_task', 'TRAIN_STEPS=7')
HEAD = 'from __gin__ import dynamic_registration\nfrom switch_jax import config\n'
# Writes what a run writes, adds a line to a list of what was run, and fails where the learning rate is 13.
STAND_IN = """
import json, pathlib, sys
folder = pathlib.Path([a for a in sys.argv if a.startswith('--gin.MODEL_DIR=')][0].partition('=')[2])
with open(folder.parent / 'ran.txt', 'a') as file:
  file.write(folder.name + '\\n')
if '--gin.LEARNING_RATE=13.0' in sys.argv and not (folder.parent / 'mended').exists():
  sys.exit('error: this one is broken')
for place, line in (('train', {'step': 7, 'loss': 2.0}), ('eval/some_task', {'step': 7, 'cross_ent_loss_text': 1.5})):
  (folder / place).mkdir(parents=True)
  (folder / place / 'metrics.jsonl').write_text(json.dumps(line) + '\\n')
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
  monkeypatch.setattr(runner, '_COMMAND', ('-c', STAND_IN))


def arguments(tmp_path, text, *more):
  file = tmp_path / 'sweep.gin'
  file.write_text(HEAD + text)
  files = [f'--gin_file={name}' for name in BASE]
  given = [f'--gin.{binding}' for binding in GIVEN]
  return [*files, *given, f'--sweep={file}', f'--out={tmp_path / "out"}', *more]


def ran(tmp_path):
  file = tmp_path / 'out' / 'ran.txt'
  return file.read_text().splitlines() if file.exists() else []


def test_one_of_twelve_fails_and_only_it_is_run_again(tmp_path, capsys):
  rates = (1.0, 2.0, 13.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0)
  given = arguments(tmp_path, f"config.SweepConfig.grid = {{'LEARNING_RATE': {rates}}}", '--jobs=3')
  assert sweep.main(given) == 1
  out, error = capsys.readouterr()
  assert len(ran(tmp_path)) == 12
  assert 'LEARNING_RATE=13.0: FAILED with status 1: this one is broken' in out
  assert 'error: 1 of 12 points failed' in error
  assert 'LEARNING_RATE=13.0/run.log' in error
  with open(tmp_path / 'out' / 'summary.csv', encoding='utf-8') as file:
    rows = {row['name']: row for row in csv.DictReader(file)}
  assert len(rows) == 12
  assert sum(row['status'] == 'finished' for row in rows.values()) == 11
  assert float(rows['LEARNING_RATE=1.0']['some_task/cross_ent_loss_text']) == 1.5
  assert rows['LEARNING_RATE=13.0']['status'] == 'failed'
  assert rows['LEARNING_RATE=13.0']['some_task/cross_ent_loss_text'] == ''

  (tmp_path / 'out' / 'ran.txt').unlink()
  (tmp_path / 'out' / 'mended').touch()
  assert sweep.main(given) == 0
  assert ran(tmp_path) == ['LEARNING_RATE=13.0']
  assert '11 of 12 have finished before' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ("config.SweepConfig.grid = {'LEARNING_RATE': (1.0,), 'NUM_EXPRETS': (4, 8)}", "Did you mean 'NUM_EXPERTS'?"),
    ("config.SweepConfig.grid = {'config.MoeConfig.rooter': ('top1',)}", "has no field 'rooter'"),
    ("config.SweepConfig.grid = {'config.MoeConfig.router': ('top1', 'top9')}", 'router=top9 is refused'),
    ("config.SweepConfig.grid = {'gin_file': ('gin/models/none.gin',)}", 'there is no gin file'),
    ("config.SweepConfig.points = ({'TRAIN_STEPS': 5}, {'TRAIN_STEPS': -5})", 'train_steps is -5'),
    ("config.SweepConfig.gird = {'TRAIN_STEPS': (5,)}", "Did you mean 'grid'?"),
    ('config.SweepConfig.grid = {}', 'nothing varies'),
    ('', 'nothing is bound of config.SweepConfig'),
  ],
)
def test_refused_before_the_first_run(tmp_path, capsys, text, message):
  assert sweep.main(arguments(tmp_path, text)) == 1
  error = capsys.readouterr().err
  assert message in error
  assert 'Traceback' not in error
  assert error.count('\n') == 1
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--jobs=0'], '--jobs is 0'),
    (['--together=0'], '--together is 0'),
    (['--jobs=two'], '--jobs'),
    (['--bogus'], '--bogus'),
    (['--print_commands', '--table'], 'give one of them'),
  ],
)
def test_wrong_flags(tmp_path, capsys, flags, message):
  assert sweep.main([*arguments(tmp_path, 'config.SweepConfig.seeds = (0, 1)'), *flags]) == 1
  assert message in capsys.readouterr().err


def test_out_that_cannot_be_written(tmp_path, capsys):
  (tmp_path / 'out').write_text('a file')
  assert sweep.main(arguments(tmp_path, 'config.SweepConfig.seeds = (0, 1)')) == 1
  assert 'which cannot be written' in capsys.readouterr().err


def test_commands_for_a_queue(tmp_path, capsys):
  text = (
    "config.SweepConfig.grid = {'TASK_FEATURE_LENGTHS': ({'inputs': 8, 'targets': 4}, {'inputs': 8, 'targets': 6})}"
  )
  assert sweep.main(arguments(tmp_path, text, '--print_commands', '--out=gs://bucket/sweep')) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2
  assert not ran(tmp_path)
  words = shlex.split(lines[0])
  assert words[:3] == ['python', '-m', 'switch_jax.main']
  assert "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}" in words
  (model_dir,) = (word for word in words if word.startswith('--gin.MODEL_DIR='))
  assert model_dir.startswith('--gin.MODEL_DIR=gs://bucket/sweep/TASK_FEATURE_LENGTHS=')


def test_longer_runs_are_run_again(tmp_path):
  text = 'config.SweepConfig.seeds = (0, 1)'
  assert sweep.main(arguments(tmp_path, text)) == 0
  assert len(ran(tmp_path)) == 2
  assert sweep.main(arguments(tmp_path, text)) == 0
  assert len(ran(tmp_path)) == 2
  finished = json.loads((tmp_path / 'out' / 'RANDOM_SEED=0' / 'finished.json').read_text())
  assert '--gin.RANDOM_SEED=0' in finished['arguments']
  assert sweep.main(arguments(tmp_path, text, '--gin.TRAIN_STEPS=9', '--table')) == 0
  assert len(ran(tmp_path)) == 2
  sweep.main(arguments(tmp_path, text, '--gin.TRAIN_STEPS=9'))
  assert len(ran(tmp_path)) == 4


def test_sigterm_ends_the_runs_too(tmp_path):
  stand_in = 'import time\nprint("began", flush=True)\ntime.sleep(3600)'
  program = (
    'import sys\nfrom switch_jax.sweep import __main__ as sweep, runner\n'
    f'runner._COMMAND = ("-c", {stand_in!r})\nsys.exit(sweep.main(sys.argv[1:]))'
  )
  given = arguments(tmp_path, 'config.SweepConfig.seeds = (0, 1, 2)', '--jobs=2')
  process = subprocess.Popen([sys.executable, '-c', program, *given], stdout=subprocess.PIPE, text=True)
  logs = [tmp_path / 'out' / f'RANDOM_SEED={seed}' / runner.LOG for seed in (0, 1)]
  while not all(log.exists() and 'began' in log.read_text() for log in logs):
    assert process.poll() is None
    time.sleep(0.05)
  process.terminate()
  out, _ = process.communicate(timeout=HUNG)  # it would last an hour if it waited for its runs
  assert process.returncode == 143
  assert out.count('was stopped') == 2
  with logs[0].open('ab') as log:
    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing runs any more
  assert not (tmp_path / 'out' / 'RANDOM_SEED=2' / runner.LOG).exists()


def test_a_point_that_runs_elsewhere_is_left_alone(tmp_path, capsys):
  folder = tmp_path / 'out' / 'RANDOM_SEED=0'
  folder.mkdir(parents=True)
  with (folder / runner.LOG).open('ab') as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    assert sweep.main(arguments(tmp_path, 'config.SweepConfig.seeds = (0, 1)')) == 0
  assert ran(tmp_path) == ['RANDOM_SEED=1']
  assert 'RANDOM_SEED=0: running elsewhere' in capsys.readouterr().out


def test_a_point_begins_with_the_result_of_another(tmp_path, capsys):
  points = """(
    {'name': 'tuned', 'results': {'INITIAL_CHECKPOINT_PATH': 'first'}},
    {'name': 'first'},
  )"""
  given = arguments(tmp_path, f'config.SweepConfig.points = {points}\nconfig.SweepConfig.seeds = (0, 1)', '--jobs=2')
  assert sweep.main(given) == 0
  done = ran(tmp_path)
  for seed in (0, 1):
    assert done.index(f'first,RANDOM_SEED={seed}') < done.index(f'tuned,RANDOM_SEED={seed}')
  record = json.loads((tmp_path / 'out' / 'tuned,RANDOM_SEED=1' / 'finished.json').read_text())
  assert f'--gin.INITIAL_CHECKPOINT_PATH={tmp_path}/out/first,RANDOM_SEED=1' in record['arguments']
  capsys.readouterr()
  other = points.replace("'first'}},", "'../before/first'}},")
  assert sweep.main(arguments(tmp_path, f'config.SweepConfig.points = {other}')) == 1
  error = capsys.readouterr().err
  assert f'takes INITIAL_CHECKPOINT_PATH from {tmp_path}/before/first, which has not finished' in error


# Says which runs it was given, and that all went well.
TOGETHER = """
import json, pathlib, sys
file = pathlib.Path(sys.argv[1])
runs = json.loads(file.read_text())
folders = [pathlib.Path(a.partition('=')[2]) for run in runs for a in run if a.startswith('--gin.MODEL_DIR=')]
with open(folders[0].parent / 'ran.txt', 'a') as ran:
  ran.write(' + '.join(folder.name for folder in folders) + '\\n')
file.with_name('errors.json').write_text(json.dumps([None] * len(runs)))
for folder in folders:
  folder.mkdir(exist_ok=True)
"""


def test_seeds_and_rates_go_together_and_models_apart(tmp_path, monkeypatch):
  monkeypatch.setattr(runner, '_TOGETHER_COMMAND', ('-c', TOGETHER))
  points = """(
    {'name': 'four', 'NUM_EXPERTS': 4}, {'name': 'eight', 'NUM_EXPERTS': 8}, {'name': 'slow', 'NUM_EXPERTS': 8,
    'LEARNING_RATE': 0.5}, {'name': 'tuned', 'NUM_EXPERTS': 8, 'results': {'INITIAL_CHECKPOINT_PATH': 'eight'}})"""
  text = f'config.SweepConfig.points = {points}\nconfig.SweepConfig.seeds = (0, 1)'
  assert sweep.main(arguments(tmp_path, text, '--together=8')) == 0
  of = lambda *names: ' + '.join(f'{name},RANDOM_SEED={seed}' for seed in (0, 1) for name in names)  # noqa: E731
  assert ran(tmp_path) == [of('four'), of('eight', 'slow'), of('tuned')]


def test_the_command_that_trains_together(tmp_path, monkeypatch):
  from switch_jax.sweep import together

  found = []

  def train_points(runs, gins):
    found.extend((run.model_dir, run.random_seed, 'NUM_EXPERTS' in gin) for run, gin in zip(runs, gins, strict=True))
    return [None, 'it is nan'], 143

  monkeypatch.setattr(together, 'train_points', train_points)
  file = tmp_path / 'arguments.json'
  given = [f'--gin_file={name}' for name in BASE] + [f'--gin.{binding}' for binding in GIVEN]
  runs = [[*given, f'--gin.MODEL_DIR={name}', f'--gin.RANDOM_SEED={seed}'] for seed, name in enumerate('ab')]
  file.write_text(json.dumps([[*run, '--compilation_cache_dir=off'] for run in runs]))
  assert sweep.main([runner.TOGETHER, str(file)]) == 143
  assert found == [('a', 0, True), ('b', 1, True)]
  assert json.loads((tmp_path / 'errors.json').read_text()) == [None, 'it is nan']
