"""Texts to texts from a MODEL_DIR."""

import numpy as np
import pytest

from switch_jax import data
from switch_jax.config import ConfigError, DecodingConfig, MeshConfig
from switch_jax.inference import Generator
from tests.inference.written_checkpoints import DECODER, TEXTS, write_checkpoints


def test_predictions_are_of_each_text_whatever_batch_it_is_in(generator):
  predictions = generator.predict(TEXTS)
  assert [p.text for p in predictions] == generator(TEXTS)
  assert len({p.text for p in predictions}) >= 3
  assert [p.was_cut for p in predictions] == [len(text.encode()) > 23 for text in TEXTS]
  assert generator([]) == []
  for i in (1, 3, 9):
    alone = generator.predict([TEXTS[i]])[0]
    assert alone.text == predictions[i].text
    np.testing.assert_allclose(alone.score, predictions[i].score, atol=1e-4)


def test_overlong_text_is_cut_and_half_a_surrogate_is_a_question_mark(generator):
  assert generator(['x' * 23, 'x' * 1000, 'a\ud800', 'a?'])[0] == generator(['x' * 1000])[0]
  assert generator(['a\ud800']) == generator(['a?'])


def test_inputs_end_as_those_of_the_task_did(tmp_path, caplog):
  features = {'inputs': {'add_eos': False}, 'targets': {'add_eos': True}}
  write_checkpoints(tmp_path, steps=(10,), features=features)
  bare, given = Generator.from_checkpoint(tmp_path), Generator.from_checkpoint(tmp_path, add_eos=True)
  assert not caplog.records
  assert [bare._tokenise('ab')[0].tolist(), given._tokenise('ab')[0].tolist()] == [[100, 101], [100, 101, 1]]
  assert [bare._tokenise('x' * n)[1] for n in (24, 25)] == [False, True]
  assert [given._tokenise('x' * n)[1] for n in (23, 24)] == [False, True]
  without, with_eos = bare.predict(['', 'ab']), given.predict(['', 'ab'])
  assert np.isfinite([p.score for p in without]).all()
  assert without[1].score != with_eos[1].score


@pytest.mark.parametrize('features', [None, {'inputs': {'add_eos': None}}])
def test_what_is_not_recorded_is_said_once(tmp_path, caplog, features):
  write_checkpoints(tmp_path, steps=(10,), **({'features': features} if features else {}))
  for _ in range(2):
    assert Generator.from_checkpoint(tmp_path)._tokenise('ab')[0].tolist() == [100, 101, 1]
  assert [r.message.count('does not say whether inputs end with EOS') for r in caplog.records] == [1]


def test_sentinels_are_text_both_ways(tmp_path):
  vocabulary = data.make_vocabulary('byt5')
  write_checkpoints(tmp_path, steps=(10,), vocabulary=data.describe_vocabulary(vocabulary))
  generator = Generator.from_checkpoint(tmp_path)
  assert generator._tokenise('a<extra_id_0>')[0].tolist() == [100, 258, 1]
  assert generator._text(np.array([258, 100, 257, 1, 0])) == '<extra_id_0>a<extra_id_1>'


def test_another_step_mesh_and_method(checkpoints, generator):
  other_mesh = Generator.from_checkpoint(checkpoints, 20, mesh=MeshConfig(data=2, expert=2, model=2))
  assert other_mesh(TEXTS[:4]) == generator(TEXTS[:4])
  sampler = Generator.from_checkpoint(checkpoints, 10, decoding=DecodingConfig(method='sample'), batch_size=8)
  drawn = sampler(TEXTS)
  assert drawn != generator(TEXTS)
  assert sampler(TEXTS[:2]) == drawn[:2]
  assert [p.text for p in sampler.predict(TEXTS[2:4], numbers=[2, 3])] == drawn[2:4]


def test_mistakes_are_named(checkpoints, generator, tmp_path):
  with pytest.raises(ConfigError, match='takes a list of strings'):
    generator('one text')
  with pytest.raises(ConfigError, match='no such folder'):
    Generator.from_checkpoint(tmp_path / 'none')
  with pytest.raises(ConfigError, match='no complete checkpoint'):
    Generator.from_checkpoint(tmp_path)
  with pytest.raises(ConfigError, match='Steps that can be read: 10, 20'):
    Generator.from_checkpoint(checkpoints, 15)
  with pytest.raises(ConfigError, match='batch_size is 3, which the 8'):
    Generator.from_checkpoint(checkpoints, batch_size=3)


def test_a_converted_checkpoint_needs_its_vocabulary_and_lengths(tmp_path):
  write_checkpoints(tmp_path, steps=(10,), vocabulary=None, run={})
  with pytest.raises(ConfigError, match='records no vocabulary'):
    Generator.from_checkpoint(tmp_path)
  with pytest.raises(ConfigError, match='records no length of inputs; give inputs_length'):
    Generator.from_checkpoint(tmp_path, vocabulary='bytes')
  with pytest.raises(ConfigError, match='cannot be read'):
    Generator.from_checkpoint(tmp_path, vocabulary=str(tmp_path / 'none.model'))


def test_a_decoder_only_model_goes_on_with_the_newest_tokens_of_a_text(tmp_path, caplog):
  features = {'targets': {'add_eos': True, 'ends_with_eos': None}}
  run = {'data': {'feature_lengths': {'targets': 32}}}
  write_checkpoints(tmp_path, steps=(10,), config=DECODER, features=features, run=run)
  generator = Generator.from_checkpoint(tmp_path, targets_length=6, batch_size=8)
  assert not caplog.records
  assert generator._tokenise('ab')[0].tolist() == [100, 101]
  texts = ['a small text', '', 'one', 'x' * 9 + 'y' * 16, 'y' * 16]
  predictions = generator.predict(texts)
  assert [p.was_cut for p in predictions] == [False, False, False, True, False]
  assert predictions[3].text == predictions[4].text
  assert len({p.score for p in predictions}) == 4
  for text, prediction in zip(texts[:3], predictions, strict=False):
    alone = generator.predict([text])[0]
    assert alone.text == prediction.text
    np.testing.assert_allclose(alone.score, prediction.score, atol=1e-4)
  for lengths in (dict(inputs_length=32), dict(inputs_length=20, targets_length=13)):
    with pytest.raises(ConfigError, match=r'has both in one row, and this one was trained on rows of 32 tokens'):
      Generator.from_checkpoint(tmp_path, **lengths)
