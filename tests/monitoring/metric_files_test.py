"""metrics.jsonl: every step once, also after kills and resumes; and what TensorBoard is told."""

import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.folders.metric_lines import read_metrics
from switch_jax.monitoring.metric_files import MetricFiles


@pytest.fixture
def files(tmp_path):
  return MetricFiles(tmp_path / 'train', tensorboard=False)


def path_of(tmp_path):
  return tmp_path / 'train' / 'metrics.jsonl'


def steps(tmp_path):
  return [record['step'] for record in read_metrics(path_of(tmp_path))]


def test_one_line_a_step_written_at_once(files, tmp_path):
  files.write(1, {'loss': np.float32(0.1), 'accuracy': jnp.float32(0.25), 'experts_unused': np.int32(3)})
  assert path_of(tmp_path).read_text() == '{"step": 1, "loss": 0.1, "accuracy": 0.25, "experts_unused": 3}\n'
  files.write(2, {'loss': 0.12345678901234567, 'half': jnp.bfloat16(0.5)})
  assert read_metrics(path_of(tmp_path))[1] == {'step': 2, 'loss': 0.12345678901234567, 'half': 0.5}


def test_nan_and_infinity_stay_valid_json(files, tmp_path):
  files.write(1, {'nan': float('nan'), 'inf': np.float32(np.inf), 'fine': 1.0})
  assert json.loads(path_of(tmp_path).read_text()) == {'step': 1, 'nan': None, 'inf': None, 'fine': 1.0}
  (record,) = read_metrics(path_of(tmp_path))
  assert math.isnan(record['nan'])
  assert record['fine'] == 1.0


@pytest.mark.parametrize('value', [np.zeros(2), 'high', None, 1j])
def test_only_numbers(files, value, tmp_path):
  with pytest.raises(ValueError, match=r"metric 'loss' is .*one number"):
    files.write(1, {'loss': value})
  assert steps(tmp_path) == []


def test_resume_cuts_what_will_be_run_again(files, tmp_path):
  for step in range(10, 60, 10):
    files.write(step, {'loss': step})
  resumed = MetricFiles(tmp_path / 'train', tensorboard=False)
  resumed.truncate_after(30)
  assert steps(tmp_path) == [10, 20, 30]
  resumed.write(40, {'loss': -1})
  assert steps(tmp_path) == [10, 20, 30, 40]
  assert os.listdir(tmp_path / 'train') == ['metrics.jsonl']
  resumed.truncate_after(-1)
  assert steps(tmp_path) == []


def test_nothing_to_cut_leaves_the_file_alone(files, tmp_path):
  files.truncate_after(5)  # nothing there yet
  assert not (tmp_path / 'train').exists()
  files.write(1, {'loss': 1})
  before = path_of(tmp_path).stat()
  files.truncate_after(1)
  assert path_of(tmp_path).stat().st_ino == before.st_ino


def test_a_kill_while_cutting_leaves_the_old_file(files, tmp_path, monkeypatch):
  for step in (1, 2, 3):
    files.write(step, {'loss': step})
  monkeypatch.setattr(os, 'replace', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
  monkeypatch.setattr(os, 'rename', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    files.truncate_after(1)
  assert steps(tmp_path) == [1, 2, 3]


def test_loads_of_experts_are_cut_and_written_again_as_metrics_are(files, tmp_path):
  loads = {'encoder_1': np.array([3.0, 0.0]), 'decoder_1': np.array([1.0, 2.0])}
  path = tmp_path / 'train' / 'expert_tokens.jsonl'
  for step in (1, 100, 200):
    files.write(step, {'loss': step})
    files.write_expert_tokens(step, loads)
  assert path.read_text().splitlines()[1] == '{"step": 100, "encoder_1": [3, 0], "decoder_1": [1, 2]}'
  with path.open('a') as file:
    file.write('{"step": 300, "enc')
  resumed = MetricFiles(tmp_path / 'train', tensorboard=False)
  resumed.truncate_after(150)
  assert resumed.last_expert_step() == 100
  resumed.write_expert_tokens(200, {'encoder_1': np.array([0, 9])})
  resumed.write_expert_tokens(200, {'encoder_1': np.array([9, 0])})
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [line['step'] for line in lines] == [1, 100, 200]
  assert lines[-1] == {'step': 200, 'encoder_1': [9, 0]}
  resumed.truncate_after(-1)
  assert path.read_text() == ''
  assert resumed.last_expert_step() is None


def test_a_torn_last_line(files, tmp_path):
  files.write(1, {'loss': 1})
  with path_of(tmp_path).open('a') as file:
    file.write('{"step": 2, "lo')
  assert steps(tmp_path) == [1]
  MetricFiles(tmp_path / 'train', tensorboard=False).write(2, {'loss': 2})
  assert read_metrics(path_of(tmp_path)) == [{'step': 1, 'loss': 1}, {'step': 2, 'loss': 2}]
  with path_of(tmp_path).open('a') as file:
    file.write('{"step": 3, "loss": 1.25}')  # whole, but for the newline: it may still be a part of 1.257
  MetricFiles(tmp_path / 'train', tensorboard=False).truncate_after(3)
  assert steps(tmp_path) == [1, 2]


def test_the_last_step_again_replaces_it_and_an_earlier_one_is_refused(files, tmp_path):
  files.write(1, {'loss': 1})
  files.write(2, {'loss': 2})
  files.write(2, {'loss': 3})
  assert read_metrics(path_of(tmp_path)) == [{'step': 1, 'loss': 1}, {'step': 2, 'loss': 3}]
  with pytest.raises(ValueError, match='ends with step 2'):
    MetricFiles(tmp_path / 'train', tensorboard=False).write(1, {'loss': 1})


def test_merged_lines_are_in_order_and_seen_by_tensorboard(tmp_path):
  files = MetricFiles(tmp_path / 'train')
  files.merge(20, {'f1': 2.0})
  files.merge(10, {'f1': np.float32(0.1)})
  files.close()
  assert path_of(tmp_path).read_text() == '{"step": 10, "f1": 0.1}\n{"step": 20, "f1": 2.0}\n'
  assert len(list((tmp_path / 'train').glob('events.out.tfevents.*'))) == 1


def test_an_inactive_host_writes_nothing(tmp_path):
  files = MetricFiles(tmp_path / 'train', active=False)
  files.truncate_after(3)
  files.write(1, {'loss': 1})
  files.merge(1, {'loss': 1})
  files.write_pictures(1, {}, {'image': np.zeros((2, 2, 3))})
  files.close()
  assert os.listdir(tmp_path) == []


def test_tensorboard_drops_the_steps_after_a_resume(tmp_path):
  """Reads the event files as TensorBoard does: by name, and a second START record drops its step and later ones."""
  for last, resume in ((4, None), (5, 2)):
    files = MetricFiles(tmp_path)
    if resume is not None:
      files.truncate_after(resume)
    for step in range((resume or 0) + 1, last + 1):
      files.write(step, {'loss': step + 100 * (resume or 0)})
    files.write_pictures(5, {'load': np.arange(8.0)}, {'picture': np.zeros((2, 2, 3), np.uint8)})
    files.close()

  from switch_jax.data.quiet_tensorflow import tf

  seen, starts = [], 0
  for path in sorted(tmp_path.glob('events.out.tfevents.*')):
    for raw in tf.data.TFRecordDataset(str(path)):
      event = tf.compat.v1.Event.FromString(raw.numpy())
      if event.session_log.status == tf.compat.v1.SessionLog.START:
        starts += 1
        seen = seen if starts == 1 else [(s, v) for s, v in seen if s < event.step]
      seen += [(event.step, float(tf.make_ndarray(v.tensor))) for v in event.summary.value if v.tag == 'loss']
  assert seen == [(1, 1.0), (2, 2.0), (3, 203.0), (4, 204.0), (5, 205.0)]


def test_a_full_disk_under_tensorboard_is_an_error_of_files(tmp_path, monkeypatch):
  from clu import metric_writers

  from switch_jax.data.quiet_tensorflow import tf

  def flush(self):
    raise tf.errors.ResourceExhaustedError(
      None, None, '{{function_node x:0}} events.out; No space left on device\nat frame'
    )

  files = MetricFiles(tmp_path / 'train')
  monkeypatch.setattr(metric_writers.SummaryWriter, 'flush', flush)
  with pytest.raises(OSError, match=r"TensorBoard's file in .*train: events.out; No space left on device$"):
    files.write(1, {'loss': 1.0})
  files.close()  # does not fail once more
  assert steps(tmp_path) == [1]


def test_numbers_of_lines_go_beside_too(tmp_path):
  given = []
  files = MetricFiles(tmp_path / 'train', tensorboard=False, beside=lambda *line: given.append(line))
  files.write(1, {'loss': np.float32(0.1)})
  assert given == [(1, {'loss': 0.1})]
