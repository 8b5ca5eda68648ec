"""Every mode and tool on an object store: TensorFlow's and TensorStore's real clients, a server of the tests' own."""

import itertools
import json
import signal
import time

import pytest

from switch_jax.tasks import train_vocabulary
from tests.object_store import bucket as buckets
from tests.object_store.scenes import BUCKET, RUN, SHRUNK, TASK
from tests.patience import HUNG

pytestmark = pytest.mark.skipif(bool(buckets.reason_to_skip()), reason=str(buckets.reason_to_skip()))


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
  """A bucket with text and a vocabulary in it, for all tests here."""
  words = [''.join(letters) for letters in itertools.product('abcde', repeat=4)]
  text = '\n\n'.join(' '.join(words[i % 600 : i % 600 + 12]) for i in range(0, 9000, 3))
  with buckets.open_bucket(tmp_path_factory.mktemp('bucket')) as found, pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_vocabulary, 'MIN_SIZE', 0)
    model = train_vocabulary.train([' '.join(words[i : i + 9]) for i in range(70)], 270)
    found.store.put('bucket', 'in/a.txt', text[:40000].encode(), {})
    found.store.put('bucket', 'in/b.txt', text[40000:].encode(), {})
    found.store.put('bucket', 'in/pieces.model', model, {})
    yield found


def lines(store, name):
  return [json.loads(line) for line in store.get('bucket', name).data.splitlines()]


def kill_while_saving(bucket, after):
  """Starts the run; kills it with SIGKILL while it writes a step after the given one is complete.

  Every fortieth request is answered with 503 or 429 at first.
  """
  requests = itertools.count(1)
  bucket.store.failing = lambda method, path: {0: 503, 40: 429}.get(next(requests) % 80)
  process = bucket.start(['-m', 'switch_jax.main', *SHRUNK, f'--gin.MODEL_DIR={RUN}', '--gin.TRAIN_STEPS=100000'])
  whole, began = f'run/checkpoints/{after}/commit_success.txt', time.monotonic()
  try:
    while whole not in bucket.store.names('run/checkpoints/'):
      assert process.poll() is None, process.stdout.read()
      assert time.monotonic() < began + HUNG
      time.sleep(0.01)
    time.sleep(0.05)
  finally:
    bucket.store.failing = lambda method, path: None
    process.send_signal(signal.SIGKILL)
    process.communicate()


def complete_steps(store):
  marks = (name.split('/') for name in store.names('run/checkpoints/') if name.endswith('/commit_success.txt'))
  return sorted(int(parts[2]) for parts in marks if len(parts) == 4)


def test_every_mode(bucket, tmp_path):
  store = bucket.store
  kill_while_saving(bucket, 3)
  newest = complete_steps(store)[-1]
  kept = lines(store, 'run/train/metrics.jsonl')
  assert [line['step'] for line in kept][:newest] == list(range(1, newest + 1))  # all that a resume needs
  # What a kill leaves of a save, and of a prune, whatever this one has left.
  for name in store.names(f'run/checkpoints/{newest}/'):
    data = store.get('bucket', name).data
    beside = name.replace(f'checkpoints/{newest}/', f'checkpoints/{newest + 3}/')
    if not name.endswith(f'{newest}/commit_success.txt'):
      store.put('bucket', beside, data, {})
    if not name.endswith('files.json'):
      store.put('bucket', name.replace(f'checkpoints/{newest}/', 'checkpoints/1/'), data, {})
  store.put('bucket', f'run/checkpoints/{newest + 9}/', b'', {})  # killed before anything was in it
  store.put('bucket', 'run/train/.tmpcompose/metrics.jsonl', b'{"st', {})
  store.reset_counts()
  steps = newest + 5
  status, output = bucket.run(['-m', 'tests.object_store.scenes', str(steps), str(tmp_path)])
  assert status == 0, output

  for name in ('train', f'eval/{TASK}'):
    there = lines(store, f'run/{name}/metrics.jsonl')
    alone = [json.loads(line) for line in (tmp_path / 'run' / name / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in there] == [line['step'] for line in alone]
    for key in ('loss', 'cross_ent_loss', 'grad_norm', 'accuracy'):
      assert [line.get(key) for line in there] == [line.get(key) for line in alone]
  loads = store.get('bucket', 'run/train/expert_tokens.jsonl').data
  assert loads == (tmp_path / 'run' / 'train' / 'expert_tokens.jsonl').read_bytes()

  # Leftovers are gone, and nothing of a checkpoint or of metrics was renamed by copying.
  folders = {name.split('/')[2] for name in store.names('run/checkpoints/')} - {''}
  assert folders <= {str(step) for step in complete_steps(store)}, folders
  assert complete_steps(store)[-1] == steps
  assert store.counts['copy'] <= 2  # the predictions, which are given their name
  assert not [name for name in store.names() if '.tmpcompose/' in name and not name.endswith('.tmpcompose/')]

  # What is sent of metrics does not grow with the files.
  assert [line['step'] for line in lines(store, 'grow/metrics.jsonl')] == list(range(1, 101))
  for file in ('metrics.jsonl', 'events.out.tfevents'):
    sent = [size for name, size in store.uploads if name.startswith('grow/') and f'/{file}' in name]
    assert len(sent) == 20, sent
    assert max(sent[1:]) < 1.5 * min(sent[1:]), sent

  assert store.get('bucket', 'sweep/summary.csv').data.startswith(b'name,status')
  predictions = lines(store, 'out/predictions.jsonl')
  assert [record['inputs'] for record in predictions] == ['a b c', 'd e', 'f', 'g h', 'i']
  assert [line['step'] for line in lines(store, 'run/eval/repeat.metrics/metrics.jsonl')] == [steps]
  assert [name for name in store.names('run/train/events.out.tfevents.')]
  assert store.get('bucket', 'run/summary.png').data.startswith(b'\x89PNG')
  assert store.get('bucket', 'run/vocabulary.model').data == store.get('bucket', 'in/pieces.model').data

  # The mark without which it is no checkpoint comes last; what is written is what a disk gets.
  for format, last in (('switch_jax', f'checkpoints/{steps}/commit_success.txt'), ('t5x', 'checkpoint'),
                       ('huggingface', 'config.json')):  # fmt: skip
    written = [name for name in store.writes if name.startswith(f'made/{format}/')]
    assert written[-1] == f'made/{format}/{last}'
    assert not store.names(f'made/{format}.converting')
  local = tmp_path / 'huggingface' / 'model.safetensors'
  assert store.get('bucket', 'made/huggingface/model.safetensors').data == local.read_bytes()
  assert str(steps) in store.get('bucket', 'report.html').data.decode()


@pytest.mark.parametrize('place', ['gs://no_such_bucket/run', f'{BUCKET}/denied'])
def test_a_bucket_that_is_not_there_or_refuses_is_one_error(bucket, place):
  """Before anything is computed."""
  bucket.store.failing = lambda method, path: 403 if 'denied' in path and method != 'GET' else None
  status, output = bucket.run(['-m', 'switch_jax.main', *SHRUNK, f'--gin.MODEL_DIR={place}', '--gin.TRAIN_STEPS=1'])
  bucket.store.failing = lambda method, path: None
  assert status == 1
  assert output.count('error: ') == 1, output
  assert 'Traceback' not in output
  assert 'Set --gin.MODEL_DIR to another one' in output
