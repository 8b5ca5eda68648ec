"""Texts to texts from a MODEL_DIR, and files of them."""

import json

import numpy as np
import pytest

from switch_jax import main
from switch_jax.config import ConfigError, DecodingConfig, MeshConfig, PredictionConfig
from switch_jax.inference import Generator, predict_file
from tests.inference.written_checkpoints import TEXTS, write_checkpoints


@pytest.fixture(scope='module')
def generator(checkpoints):
  return Generator.from_checkpoint(checkpoints, batch_size=8)


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


def write(path, lines):
  path.write_bytes(b''.join(line.encode() + b'\n' for line in lines))
  return str(path)


LINES = [
  *(json.dumps({'id': i, 'text': text}) for i, text in enumerate(TEXTS)),
  '{"text": "cut',
  '',
  '{"id": 11}',
  '"bare"',
  '{"text": 5}',
  *(json.dumps({'id': i, 'text': text}) for i, text in enumerate(TEXTS[:3])),
]


def prediction_config(checkpoints, tmp_path, **fields):
  source = write(tmp_path / 'in.jsonl', LINES)
  given = dict(input_file=source, output_file=str(tmp_path / 'out.jsonl'), batch_size=8, inputs_key='text')
  return PredictionConfig(model_dir=str(checkpoints), **(given | fields))


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_gives_a_line_for_every_line(checkpoints, generator, tmp_path, capsys):
  assert predict_file(prediction_config(checkpoints, tmp_path)) == 1
  records = read(tmp_path / 'out.jsonl')
  shown = capsys.readouterr().err
  expected = generator.predict(TEXTS)
  for i, (record, prediction) in enumerate(zip(records, expected, strict=False)):
    assert record['id'] == i
    assert record['text'] == TEXTS[i]
    assert record['prediction'] == prediction.text
    np.testing.assert_allclose(record['score'], prediction.score, atol=1e-4)
  assert [record.get('line') for record in records[10:]] == [11, 13, None, 15, None, None, None]
  assert records[12]['text'] == 'bare'
  for number in (11, 13, 15):
    assert f'line {number} is malformed' in shown
  assert '17 of 17 lines' in shown
  assert '1 texts were longer' in shown
  assert sorted(p.name for p in tmp_path.iterdir()) == ['in.jsonl', 'out.jsonl']
  assert predict_file(prediction_config(checkpoints, tmp_path)) == 0
  assert 'nothing to do' in capsys.readouterr().out


def test_a_killed_run_goes_on(checkpoints, tmp_path, monkeypatch, capsys):
  sampling = DecodingConfig(method='sample', seed=5)
  config = prediction_config(checkpoints, tmp_path, decoding=sampling)
  assert predict_file(config) == 1
  whole = (tmp_path / 'out.jsonl').read_bytes()
  (tmp_path / 'out.jsonl').unlink()

  class Killed(Exception):
    pass

  predict = Generator.predict

  def once(self, texts, numbers):
    monkeypatch.setattr(Generator, 'predict', die)
    return predict(self, texts, numbers)

  def die(self, texts, numbers):
    raise Killed

  monkeypatch.setattr(Generator, 'predict', once)
  with pytest.raises(Killed):
    predict_file(config)
  monkeypatch.setattr(Generator, 'predict', predict)
  partial = tmp_path / 'out.jsonl.partial'
  assert partial.read_bytes() == b''.join(whole.splitlines(keepends=True)[:8])
  with partial.open('ab') as file:
    file.write(b'{"torn')
  with pytest.raises(ConfigError, match=r'seed.*set them back to go on'):
    predict_file(prediction_config(checkpoints, tmp_path, decoding=DecodingConfig(method='sample', seed=6)))
  assert predict_file(config) == 1
  assert 'going on after 8 of 17 lines' in capsys.readouterr().err
  assert (tmp_path / 'out.jsonl').read_bytes() == whole
  assert sorted(p.name for p in tmp_path.iterdir()) == ['in.jsonl', 'out.jsonl']


def test_the_command_line_and_its_mistakes(checkpoints, tmp_path, capsys):
  source = write(tmp_path / 'in.jsonl', ['{"inputs": "a"}'])
  command = ['--run_mode=infer', '--gin_file=gin/runs/infer.gin', f'--gin.MODEL_DIR={checkpoints}']
  command += [f'--gin.OUTPUT_FILE={tmp_path / "out.jsonl"}', '--compilation_cache_dir=off']
  for wrong, message in (
    ([f'--gin.INPUT_FILE={tmp_path}/none.jsonl'], 'no such file'),
    ([f'--gin.INPUT_FILE={source}', '--gin.DECODING=beem'], "Did you mean 'beam'?"),
    ([f'--gin.INPUT_FILE={source}', '--gin.STEP=3'], 'Steps that can be read: 10, 20.'),
    ([], 'INPUT_FILE has no value'),
    ([f'--gin.INPUT_FILE={source}', '--dry_run'], '--dry_run is for --run_mode=train'),
  ):
    assert main.main([*command, *wrong]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
  assert main.main([*command, f'--gin.INPUT_FILE={source}', '--gin.BATCH_SIZE=8']) == 0
  assert set(read(tmp_path / 'out.jsonl')[0]) == {'inputs', 'prediction', 'score'}
