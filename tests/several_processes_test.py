"""Hosts that disagree, are missing or fail: several real processes over loopback. Nothing is compiled here."""

import pytest

from tests.parallel.hosts_test import free_address
from tests.patience import HUNG
from tests.two_processes_test import start


def start_all(tmp_path, *more):
  """Starts a process for each list of further arguments."""
  hosts = (f'--coordinator_address={free_address()}', f'--num_processes={len(more)}')
  logs = [tmp_path / f'{i}.log' for i in range(len(more))]
  devices = 8 // len(more)
  model_dir = tmp_path / 'model'
  running = [
    start(model_dir, log, devices, *hosts, f'--process_id={i}', *each)
    for i, (log, each) in enumerate(zip(logs, more, strict=True))
  ]
  return running, logs


def outcomes(running, logs):
  """Returns the statuses and, of each process, the lines that are errors."""
  try:
    statuses = [process.wait(HUNG) for process in running]
  finally:  # one that hangs is not left to the tests that follow
    for process in running:
      process.kill()
  return statuses, [[line for line in log.read_text().splitlines() if 'rror' in line] for log in logs]


def on_text(path):
  """Returns the arguments of a run on a text file."""
  return [
    *('--gin.MIXTURE_OR_TASK_NAME=text_files_span_corruption', f'--gin.config.DataConfig.text_files={path}'),
    '--gin.config.DataConfig.task_module=switch_jax.tasks.text_files',
  ]


def write_text(path, word):
  path.write_text('\n\n'.join(f'Paragraph {i} of a text about {word} and other things.' for i in range(2000)))
  return path


@pytest.mark.parametrize(
  ('more', 'difference'),
  [
    ([[], ['--gin.LEARNING_RATE=0.25']], 'optimizer.learning_rate is 1.0 in process 0 of 2, 0.25 in process 1 of 2'),
    (
      [[], [], ['--gin.BATCH_SIZE=16'], []],
      'data.batch_size is 8 in processes 0, 1 and 3 of 4, 16 in process 2 of 4',
    ),
  ],
)
def test_hosts_that_differ_train_nothing(tmp_path, more, difference):
  statuses, errors = outcomes(*start_all(tmp_path, *more))
  assert statuses == [1] * len(more)
  for lines in errors:
    assert len(lines) == 1
    assert lines[0].startswith('error: the processes of this run differ in configuration, so nothing was started: ')
    assert difference in lines[0]
  assert not (tmp_path / 'model').exists()


def test_hosts_with_other_text_train_nothing(tmp_path):
  texts = [write_text(tmp_path / f'{word}.txt', word) for word in ('ships', 'trees')]
  statuses, errors = outcomes(*start_all(tmp_path, *map(on_text, texts)))
  assert statuses == [1, 1]
  for lines in errors:
    assert len(lines) == 1
    assert lines[0].startswith('error: the processes of this run differ in data, so nothing was started: corpus is "')


def test_the_failure_of_one_ends_the_others(tmp_path):
  text = write_text(tmp_path / 'ships.txt', 'ships')
  statuses, errors = outcomes(*start_all(tmp_path, on_text(text), on_text(tmp_path / 'no.txt')))
  assert statuses == [1, 1]
  own = errors[1][0].removeprefix('error: ')
  assert 'no.txt' in own
  assert errors == [[f'error: process 1 has failed: {own}'], [f'error: {own}']]


def test_missing_hosts_are_named(tmp_path):
  address = free_address()
  logs = [tmp_path / '0.log', tmp_path / '1.log']
  hosts = [(address, 0), (free_address(), 1)]
  running = [
    start(
      tmp_path / 'model',
      log,
      4,
      f'--coordinator_address={a}',
      '--num_processes=2',
      f'--process_id={i}',
      '--join_timeout=11',
    )
    for log, (a, i) in zip(logs, hosts, strict=True)
  ]
  statuses, errors = outcomes(running, logs)
  assert statuses == [1, 1]
  assert 'waiting for process 1 of 2, 10 of 11 s\n' in logs[0].read_text()
  assert errors[0][0].startswith(f'error: process 1 of 2 did not join {address} in time.')
  assert f'waiting for process 0 of 2 at {hosts[1][0]} (Connection refused), 10 of 11 s\n' in logs[1].read_text()
  assert f'process 1 of 2 could not join process 0 at {hosts[1][0]}: Connection refused' in errors[1][0]
  assert [len(lines) for lines in errors] == [1, 1]
