"""Weights of mixtures by tokens, counted on mock data."""

import json

import pytest
from switch_jax.tasks.tfds_source import TfdsSource

from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.vocabularies import make_vocabulary
from switch_jax.tasks import mixtures, text_to_text


def test_mixtures_by_tokens(mock_data, tmp_path, monkeypatch):
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path))
  mixtures._tokens_of.cache_clear()
  monkeypatch.setattr(TfdsSource, 'num_input_examples', lambda self, split: 300)
  mixture = seqio.get_mixture_or_task('glue_v002_by_tokens')
  task = seqio.TaskRegistry.get('glue_cola_v002')
  counted = list(task.preprocess_precache(task.source.get_dataset('train', shuffle=False), seed=0).as_numpy_iterator())
  tokens = sum(len(e['inputs']) + len(e['targets']) + 2 for e in counted)
  assert mixture.get_rate(task) == tokens * 300 / min(300, mixtures.EXAMPLES_COUNTED)
  assert mixture.get_rate(seqio.TaskRegistry.get('glue_ax_v002')) == 0
  assert len(list((tmp_path / 'token_counts').iterdir())) == 1
  by_examples = seqio.get_mixture_or_task('glue_v002_proportional')
  assert by_examples.get_rate(task) == 8551


@pytest.fixture
def lines(tmp_path, monkeypatch):
  """A task of three pairs of texts, `lines`, and a task of one, `held_out`, that has no training split."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  mixtures._tokens_of.cache_clear()
  (tmp_path / 'lines.txt').write_text('ab\tc\n\té\nabcdef\tghi\n')
  split = text_to_text.mapped(text_to_text._split_pair)
  for name, where in (('lines', 'train'), ('held_out', 'validation')):
    source = seqio.TextLineDataSource({where: str(tmp_path / 'lines.txt')}, num_input_examples={where: 3})
    text_to_text.add_task(name, source, [split], make_vocabulary('bytes'))
  yield seqio.TaskRegistry.get('lines')
  for name in ('both', 'both_by_tokens', 'lines', 'held_out'):
    text_to_text.remove_task(name)


def test_tokens_are_counted_once_and_kept(lines, tmp_path, monkeypatch):
  # Bytes, é having two, and an EOS for each text.
  assert mixtures.count_tokens(lines) == (2 + 1) + (0 + 2) + (6 + 3) + 6
  [kept] = (tmp_path / 'cache' / 'token_counts').iterdir()
  assert json.loads(kept.read_text()) == {'task': 'lines', 'tokens': 20.0}
  kept.write_text('{"tokens": 77}')
  assert mixtures.count_tokens(lines) == 77
  kept.write_text('{"tok')  # damaged: counted anew
  assert mixtures.count_tokens(lines) == 20
  monkeypatch.setattr(mixtures, 'EXAMPLES_COUNTED', 2)
  assert mixtures.count_tokens(lines) == 9 * 3 / 2  # nine tokens in the first two of three


def test_a_mixture_by_examples_and_one_by_tokens(lines):
  for _ in range(2):  # the second takes the place of the first
    mixtures.add_mixtures('both', 'both_by_tokens', [('lines', 3.0), ('held_out', 0.0)])
  tasks = [seqio.TaskRegistry.get(name) for name in ('lines', 'held_out')]
  rates = {name: [seqio.get_mixture_or_task(name).get_rate(t) for t in tasks] for name in ('both', 'both_by_tokens')}
  assert rates == {'both': [3.0, 0.0], 'both_by_tokens': [20.0, 0.0]}
  assert mixtures.token_rate(tasks[1]) == 0.0
