"""Files of texts: a line for every line, what is said of malformed ones, and going on where a run was killed."""

import dataclasses
import json
import os

import numpy as np
import pytest

from switch_jax import main
from switch_jax.config import ConfigError, DecodingConfig, PredictionConfig
from switch_jax.inference import Generator, predict_file
from tests.inference.written_checkpoints import TEXTS


def test_a_file_of_another_encoding_is_refused_before_the_model_is_read(tmp_path):
  (tmp_path / 'in.jsonl').write_bytes('{"text": "a b"}\n'.encode('utf-16'))
  config = PredictionConfig(
    model_dir='no/such', input_file=str(tmp_path / 'in.jsonl'), output_file=str(tmp_path / 'out.jsonl'), batch_size=1
  )
  with pytest.raises(ConfigError, match=r'in\.jsonl is UTF-16, as its byte order mark says'):
    predict_file(config)
  assert {path.name for path in tmp_path.iterdir()} == {'in.jsonl'}


def test_what_is_added_has_names_of_its_own(tmp_path):
  given = dict(model_dir='m', input_file='i', output_file='o', batch_size=1)
  for names in ({'score_field': 'prediction'}, {'prediction_field': 'inputs'}, {'score_field': 'was_cut'}):
    with pytest.raises(ConfigError, match='are taken; choose another name'):
      PredictionConfig(**given, **names)


def test_fields_that_are_chosen_and_scores_that_are_no_numbers(checkpoints, tmp_path, monkeypatch):
  predict = Generator.predict

  def without_numbers(self, texts, numbers):
    return [dataclasses.replace(p, score=float('nan')) for p in predict(self, texts, numbers)]

  monkeypatch.setattr(Generator, 'predict', without_numbers)
  names = dict(prediction_field='ours', score_field='nats')
  config = prediction_config(checkpoints, tmp_path, **names)
  write(tmp_path / 'in.jsonl', ['{"text": "a", "score": 5, "prediction": "mine"}', json.dumps('x' * 500)])
  assert predict_file(config) == 0
  short, cut = read(tmp_path / 'out.jsonl')
  assert short == {'text': 'a', 'score': 5, 'prediction': 'mine', 'ours': short['ours'], 'nats': None}
  assert cut['was_cut'] is True


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
    assert record.get('was_cut', False) == prediction.was_cut
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


def test_a_second_run_on_one_output_file_is_refused(checkpoints, tmp_path, monkeypatch, capsys):
  config, predict, inside = prediction_config(checkpoints, tmp_path), Generator.predict, []

  def try_again(self, texts, numbers):
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ConfigError) as error:
      predict_file(config)
    inside.append((str(error.value), before == sorted(p.name for p in tmp_path.iterdir())))
    return predict(self, texts, numbers)

  monkeypatch.setattr(Generator, 'predict', try_again)
  assert predict_file(config) == 1
  for error, is_untouched in inside:
    assert error.startswith(f'OUTPUT_FILE {tmp_path / "out.jsonl"} belongs to process {os.getpid()} on host ')
    assert error.endswith('name another --gin.OUTPUT_FILE.')
    assert is_untouched
  assert len(inside) == 3
  assert sorted(p.name for p in tmp_path.iterdir()) == ['in.jsonl', 'out.jsonl']
  assert 'nothing to do' not in capsys.readouterr().out


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
