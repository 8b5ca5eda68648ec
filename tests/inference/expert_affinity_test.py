"""What experts take: counts against the model's own statistics, and the numbers made of them by hand."""

import dataclasses
import json
import math
import os
import shutil

import jax
import numpy as np
import pytest

from switch_jax.config import ConfigError, DataConfig, MoeConfig
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.folders.model_dir import ModelDir
from switch_jax.inference.expert_affinity import (
  LayerCounts,
  count_choices,
  describe_layer,
  favourites,
  make_first_choices,
  measure_experts,
  mutual_information,
  readable_pieces,
  write_experts,
)
from switch_jax.interop.scanned import stack_layers
from switch_jax.model import Transformer, abstract_parameters
from switch_jax.parallel import Layout
from tests.inference.written_checkpoints import MODEL, TEXTS, VOCABULARY, random_parameters, write_checkpoints

ATTENTION = dataclasses.replace(
  MODEL,
  num_encoder_layers=2,
  num_decoder_layers=2,
  moe=MoeConfig(
    num_experts=4,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_layers=1,
    decoder_attention_layers=1,
    bias_update_rate=1e-3,
    aux_loss_factor=0.0,
  ),
)


def random_batch(rows=3, length=12):
  random = np.random.default_rng(0)
  batch = {}
  for stack in ('encoder', 'decoder'):
    tokens = random.integers(3, 259, (rows, length), dtype=np.int32)
    real = np.arange(length) < np.array([[length], [length - 4], [1]])
    batch[f'{stack}_input_tokens'] = np.where(real, tokens, 0)
    batch[f'{stack}_segment_ids'] = real.astype(np.int32)
    batch[f'{stack}_group_ids'] = np.where(real, np.array([[1], [2], [0]], np.int32), 0)
  batch['decoder_input_tokens'][:, 0] = 0  # the start of a target is a token like any other
  return batch


def parameters_of(config):
  random = np.random.default_rng(1)
  draw = lambda x: random.normal(0, x.shape[-2] ** -0.5 if x.ndim > 1 else 1.0, x.shape).astype(np.float32)  # noqa: E731
  return jax.tree.map(draw, abstract_parameters(config, Layout.single_device()))


@pytest.fixture(scope='module')
def counted():
  """Parameters of a model with all kinds of routers, biases too, a batch, and its counts."""
  params, batch = parameters_of(ATTENTION), random_batch()
  choose = make_first_choices(ATTENTION, Layout.single_device())
  counts = count_choices(choose, params, [batch, batch], vocab_size=264, num_experts=4, num_groups=2)
  return params, batch, counts


def test_counts_are_those_of_the_models_own_statistics(counted):
  params, batch, counts = counted
  _, statistics = Transformer(ATTENTION, Layout.single_device()).apply({'params': params}, batch)
  assert set(counts) == set(statistics)
  assert 'decoder_1_attention' in counts
  for layer, found in counts.items():
    wanted = np.sum(statistics[layer].expert_tokens, axis=0)
    np.testing.assert_array_equal(found.tokens.sum(axis=0), 2 * wanted)
  assert len({tuple(found.tokens.sum(axis=0)) for found in counts.values()}) > 4  # and they differ


def test_tokens_are_counted_where_they_are_read_and_padding_nowhere(counted):
  _, batch, counts = counted
  for stack in ('encoder', 'decoder'):
    tokens = batch[f'{stack}_input_tokens'][batch[f'{stack}_segment_ids'] > 0]
    occurrences = counts[f'{stack}_0'].tokens.sum(axis=1)
    np.testing.assert_array_equal(occurrences, 2 * np.bincount(tokens, minlength=264))
  assert counts['decoder_0'].tokens[0].sum() == 6  # starts
  assert counts['encoder_0'].tokens[0].sum() == 0


def test_groups_are_counted_from_one_and_zero_is_none(counted):
  _, _, counts = counted
  for found in counts.values():
    np.testing.assert_array_equal(found.groups.sum(axis=1), [2 * 12, 2 * 8])


def test_scanned_layers_are_counted_as_separate_ones(counted):
  params, batch, counts = counted
  scanned = dataclasses.replace(ATTENTION, scan_layers=True, remat_policy='full')
  choose = make_first_choices(scanned, Layout.single_device())
  found = count_choices(choose, stack_layers(params, ATTENTION), [batch], vocab_size=264, num_experts=4)
  assert set(found) == set(counts)
  for layer, count in found.items():
    np.testing.assert_array_equal(2 * count.tokens, counts[layer].tokens)


def test_mutual_information_by_hand():
  assert mutual_information(np.zeros((2, 2))) == (0.0, 0.0)
  bits, by_chance = mutual_information(np.array([[50, 0], [0, 50]]))
  assert bits == pytest.approx(1.0)
  assert by_chance == pytest.approx(1 / (200 * math.log(2)))
  assert mutual_information(np.array([[10, 30], [20, 60], [0, 0]]))[0] == pytest.approx(0.0, abs=1e-12)
  # H(expert) - H(expert | token): 1 - (1/2 h(1/4) + 1/2 h(1/4)).
  entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
  assert mutual_information(np.array([[10, 30], [30, 10]]))[0] == pytest.approx(1 - entropy)


def test_what_chance_shows_is_about_what_is_expected():
  """Rows and columns drawn apart: the mean information over many draws is the second number."""
  random = np.random.default_rng(0)
  found = []
  for _ in range(200):
    counts = np.zeros((6, 4), int)
    np.add.at(counts, (random.integers(0, 6, 500), random.integers(0, 4, 500)), 1)
    found.append(mutual_information(counts))
  bits, by_chance = np.mean(found, axis=0)
  assert bits == pytest.approx(by_chance, rel=0.1)


def test_favourites_are_neither_the_rare_nor_the_frequent_tokens():
  tokens = np.zeros((5, 2), int)
  tokens[0] = (500, 500)  # frequent, and everybody's
  tokens[1] = (2, 0)  # rare, and all the first expert's
  tokens[2] = (90, 10)
  tokens[3] = (40, 0)
  tokens[4] = (0, 122)
  first, second = favourites(tokens)
  assert [(token, count, of) for token, count, of, _ in first] == [(2, 90, 100), (3, 40, 40)]
  assert [token for token, *_ in second] == [4]
  assert first[0][3] == pytest.approx(90 * math.log2(0.9 / 0.5))
  assert favourites(tokens, kept=1)[0] == first[:1]


def test_the_bits_of_all_tokens_are_the_mutual_information():
  tokens = np.array([[90, 10], [5, 60], [40, 40]])
  everything = sum(bits for expert in favourites(tokens) for *_, bits in expert)
  information = mutual_information(tokens)[0] * tokens.sum()
  negative = sum(
    n * math.log2(n * tokens.sum() / (tokens[t].sum() * tokens[:, e].sum()))
    for (t, e), n in np.ndenumerate(tokens)
    if n * tokens.sum() < tokens[t].sum() * tokens[:, e].sum()
  )
  assert everything + negative == pytest.approx(information)


def test_pieces_are_readable(tmp_path):
  piece = readable_pieces(seqio.ByteVocabulary(extra_ids=2))
  shown = [piece(token) for token in (0, 1, 2, 3 + 65, 3 + 32, 3 + 10, 3 + 0xE3, 259, 260)]
  assert shown == ['<pad>', '</s>', '<unk>', 'A', '␣', '\\n', '0xE3', '<extra_id_1>', '<extra_id_0>']
  assert piece(300) == '<300>'

  class Words:
    vocab_size, extra_ids, eos_id, unk_id = 10, 0, 1, 2

    def decode(self, ids):
      return {4: 'a b'}.get(ids[0], '')

  piece = readable_pieces(Words())
  assert (piece(4), piece(5)) == ('a␣b', '<5>')


def test_pieces_of_a_sentencepiece_model(tmp_path):
  import itertools

  from switch_jax.tasks import train_vocabulary

  words = [''.join(letters) for letters in itertools.product('abc', repeat=4)]
  model = tmp_path / 'small.model'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_vocabulary, 'MIN_SIZE', 0)
    model.write_bytes(train_vocabulary.train([' '.join(words[i : i + 9]) for i in range(70)], 270))
  vocabulary = seqio.SentencePieceVocabulary(str(model), 3)
  piece = readable_pieces(vocabulary)
  [token] = vocabulary.encode('a')[:1]
  assert piece(token).startswith('␣')
  assert piece(vocabulary.vocab_size - 1).endswith('<extra_id_0>')
  assert piece(vocabulary.vocab_size) == f'<{vocabulary.vocab_size}>'


def test_a_layer_in_words_has_the_start_of_targets_in_the_decoder_only():
  tokens = np.zeros((264, 2), np.int64)
  tokens[0], tokens[68] = (9, 0), (0, 9)
  counts = LayerCounts(tokens, np.array([[9, 0], [0, 9]]))
  piece = readable_pieces(VOCABULARY)
  decoder, encoder = (describe_layer(counts, piece, stack) for stack in ('decoder', 'encoder'))
  assert decoder['favourites'][0] == [{'token': 0, 'piece': '<start>', 'count': 9, 'of': 9, 'bits': 9.0}]
  assert encoder['favourites'][0][0]['piece'] == '<pad>'
  assert decoder['favourites'][1][0]['piece'] == 'A'
  assert (decoder['group_bits'], decoder['group_tokens']) == (pytest.approx(1.0), [[9, 0], [0, 9]])
  assert 'group_bits' not in describe_layer(LayerCounts(tokens, np.zeros((0, 2))), piece, 'encoder')


def run_record(task, batch_size=8, **changes):
  lengths = {'inputs': 24, 'targets': 8}
  data = DataConfig(mixture_or_task_name=task, feature_lengths=lengths, batch_size=batch_size, pack=False)
  return {'run': {'data': data.to_json(), 'eval_steps': 5, 'train_steps': 20}, **changes}


@pytest.fixture(scope='module')
def run_of_letters(tmp_path_factory, tasks):
  folder = tmp_path_factory.mktemp('letters')
  return write_checkpoints(folder, steps=(10, 20), **run_record('repeat_letters'))


def test_a_run_is_measured_on_its_held_out_data(run_of_letters):
  path = write_experts(run_of_letters)
  assert path == ModelDir(run_of_letters).experts('repeat_letters', 20)
  found = json.loads(path.read_text())
  assert (found['step'], found['task'], found['batches'], found['groups']) == (20, 'repeat_letters', 2, [])
  assert set(found['layers']) == {'encoder_0', 'decoder_0'}
  # Of every text its bytes and EOS, at most 24 in the encoder and 8 in the decoder.
  lengths = [len(text.encode()) + 1 for text in TEXTS]
  assert sum(found['layers']['encoder_0']['expert_tokens']) == sum(min(n, 24) for n in lengths)
  assert sum(found['layers']['decoder_0']['expert_tokens']) == sum(min(n, 8) for n in lengths)
  pieces = {t['piece'] for expert in found['layers']['encoder_0']['favourites'] for t in expert}
  assert 'x' in pieces
  assert measure_experts(run_of_letters, 10)['step'] == 10
  assert not list(path.parent.glob('*.tmp'))


def test_groups_of_the_held_out_data_are_counted(run_of_letters, monkeypatch):
  """Whatever task gives groups: a batch with the numbers of groups and their names."""
  from switch_jax import data

  original = data.open_evaluation

  def with_groups(*arguments):
    batches = original(*arguments)
    for batch in batches.on_host:
      for stack in ('encoder', 'decoder'):
        real = batch[f'{stack}_segment_ids'] > 0
        batch[f'{stack}_group_ids'] = np.where(real, 1 + np.arange(len(real))[:, None] % 2, 0).astype(np.int32)
    batches.groups = ('even', 'odd')
    return batches

  monkeypatch.setattr(data, 'open_evaluation', with_groups)
  layer = measure_experts(run_of_letters)['layers']['encoder_0']
  np.testing.assert_array_equal(np.sum(layer['group_tokens'], axis=0), layer['expert_tokens'])
  assert 0 <= layer['group_bits'] <= 1


def test_what_cannot_be_measured_is_refused(tmp_path, tasks):
  dense = dataclasses.replace(MODEL, moe=None).to_json()
  write_checkpoints(tmp_path / 'dense', steps=(1,), **run_record('repeat_letters', model=dense))
  with pytest.raises(ConfigError, match='has no experts; choose a run'):
    measure_experts(tmp_path / 'dense')
  write_checkpoints(tmp_path / 'alone', steps=(1,), run=None)
  with pytest.raises(ConfigError, match='does not record its run'):
    measure_experts(tmp_path / 'alone')
  write_checkpoints(tmp_path / 'other', steps=(1,), **run_record('repeat_other_vocabulary'))
  with pytest.raises(ConfigError, match='another vocabulary now'):
    measure_experts(tmp_path / 'other')
  with pytest.raises(ConfigError, match='no such folder'):
    measure_experts(tmp_path / 'nothing')


def test_the_report_measures_what_is_missing_and_what_is_older_than_its_checkpoint(run_of_letters, tmp_path, capsys):
  from switch_jax.report.__main__ import main

  folder = tmp_path / 'run'
  shutil.copytree(run_of_letters, folder)
  shutil.rmtree(folder / 'eval', ignore_errors=True)
  (folder / 'eval' / 'repeat_letters').mkdir(parents=True)
  (folder / 'eval' / 'repeat_letters' / 'metrics.jsonl').write_text('{"step": 20, "cross_ent_loss": 2.0}\n')
  arguments = [str(folder), '--experts', f'--out={tmp_path}/report.html']
  assert main(arguments) == 0
  assert 'experts_20.json' in capsys.readouterr().out
  experts = folder / 'eval' / 'repeat_letters' / 'experts_20.json'
  written = experts.stat().st_mtime_ns
  assert '␣' in (tmp_path / 'report.html').read_text()
  assert main(arguments) == 0
  assert 'experts_20.json is there' in capsys.readouterr().out
  assert experts.stat().st_mtime_ns == written
  os.utime(experts, (0, 0))  # as if the checkpoint had come after it
  assert main(arguments) == 0
  assert 'experts_20.json is there' not in capsys.readouterr().out
  assert experts.stat().st_mtime > 0


def test_a_run_that_cannot_be_measured_is_named_and_the_report_made(tmp_path, tasks, capsys):
  from switch_jax.report.__main__ import main

  folder = write_checkpoints(tmp_path / 'run', steps=(1,), **run_record('repeat_lettres'))
  (folder / 'eval' / 'repeat_lettres').mkdir(parents=True)
  (folder / 'eval' / 'repeat_lettres' / 'metrics.jsonl').write_text('{"step": 1, "cross_ent_loss": 2.0}\n')
  assert main([str(folder), '--experts', f'--out={tmp_path}/report.html']) == 0
  said = 'note: run: what its experts take could not be measured: DataConfig.mixture_or_task_name is'
  assert said in capsys.readouterr().err
  assert 'what its experts take could not be measured' in (tmp_path / 'report.html').read_text()


def test_parameters_of_the_shared_fixture_route_to_several_experts():
  """Guards the tests above: with one busy expert they would show little."""
  batch = random_batch()
  choose = make_first_choices(MODEL, Layout.single_device())
  counts = count_choices(choose, random_parameters(20), [batch], vocab_size=264, num_experts=4)
  assert all(np.count_nonzero(found.tokens.sum(axis=0)) >= 2 for found in counts.values())
