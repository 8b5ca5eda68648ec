"""Metrics of tasks and mixtures over the checkpoints of a run."""

import dataclasses
import json
import threading

import numpy as np
import pytest
from switch_jax.tasks.text_to_text import remove_task

from switch_jax.config import ConfigError, DataConfig, EvaluationConfig
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.inference import Generator, evaluate_run
from switch_jax.tasks import multiple_choice
from tests.inference.written_checkpoints import DECODER, TEXTS, VOCABULARY, write_checkpoints

pytestmark = pytest.mark.usefixtures('tasks')


def evaluation_config(model_dir, task='repeat_both', **fields):
  lengths = {'inputs': 24, 'targets': 8}
  data = DataConfig(mixture_or_task_name=task, feature_lengths=lengths, batch_size=8)
  return EvaluationConfig(model_dir=str(model_dir), data=data, poll_seconds=0.1, **fields)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_task_of_a_mixture_at_two_capacities(model_dir, capsys):
  # What training has written, and may write at any time.
  own = model_dir / 'eval' / 'repeat_letters' / 'metrics.jsonl'
  own.parent.mkdir(parents=True)
  own.write_text('{"step": 10, "cross_ent_loss": 3.5}\n{"step": 2')
  kept = own.read_bytes()
  config = evaluation_config(model_dir, checkpoints='all', capacity_factors=(None, 0.25))
  assert evaluate_run(config) == 0
  assert own.read_bytes() == kept

  letters = read(model_dir / 'eval' / 'repeat_letters.metrics' / 'metrics.jsonl')
  scores = read(model_dir / 'eval' / 'repeat_scores.metrics' / 'metrics.jsonl')
  both = read(model_dir / 'eval' / 'repeat_both.metrics' / 'metrics.jsonl')
  assert [line['step'] for line in both] == [10, 20]
  for i, step in enumerate((10, 20)):
    predicted = Generator.from_checkpoint(model_dir, step, batch_size=8).predict(TEXTS)
    expected = 100 * np.mean([p.text[:1] == text[:1] for p, text in zip(predicted, TEXTS, strict=True)])
    assert letters[i]['first_letters'] == pytest.approx(expected)
    records = read(model_dir / 'predictions' / 'repeat_letters' / f'{step}.jsonl')
    assert [record['prediction'] for record in records] == [p.text for p in predicted]
    assert [record['targets'] for record in records] == TEXTS
    records = read(model_dir / 'predictions' / 'repeat_scores' / f'{step}.jsonl')
    assert scores[i]['mean_score'] == pytest.approx(np.mean([record['target_score'] for record in records]))
    assert scores[i]['mean_score'] < 0
    assert scores[i]['mean_score/capacity_0.25'] != pytest.approx(scores[i]['mean_score'], abs=1e-3)
    assert both[i]['first_letters'] == pytest.approx((letters[i]['first_letters'] + scores[i]['first_letters']) / 2)
    mean_of_scores = (scores[i]['mean_score'] + scores[i]['first_letters']) / 2
    assert both[i]['average'] == pytest.approx((letters[i]['first_letters'] + mean_of_scores) / 2)
    assert 'average/capacity_0.25' in both[i]
  assert (model_dir / 'predictions' / 'repeat_scores' / '20_capacity_0.25.jsonl').exists()
  assert list((model_dir / 'eval' / 'repeat_both.metrics').glob('events.out.tfevents.*'))

  capsys.readouterr()
  assert evaluate_run(config) == 0
  assert 'has been evaluated before' in capsys.readouterr().out
  # An older step again, alone: its line is made anew and keeps its place.
  assert evaluate_run(evaluation_config(model_dir, step=10, num_examples=2)) == 0
  again = read(model_dir / 'eval' / 'repeat_both.metrics' / 'metrics.jsonl')
  assert [line['step'] for line in again] == [10, 20]
  assert again[1] == both[1]


def test_metrics_of_the_user(model_dir, tmp_path, monkeypatch):
  """Beside those of the task, and where it has none; a wrong one is refused before a checkpoint is read."""
  (tmp_path / 'my_metrics.py').write_text(
    'def share(targets, predictions):\n  return {"share": len(predictions) / len(targets)}\n'
    'def of_texts(texts):\n  return {}\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  for task, own in (('repeat_letters', ['first_letters']), ('repeat_no_metric', [])):
    assert evaluate_run(evaluation_config(model_dir, task, metrics=('my_metrics:share',), num_examples=2)) == 0
    [line] = read(model_dir / 'eval' / f'{task}.metrics' / 'metrics.jsonl')
    assert line['share'] == 1
    assert set(own) <= set(line)
  with pytest.raises(ConfigError, match=r'Metric functions must have positional arguments .*; mend metric_fns'):
    evaluate_run(evaluation_config(model_dir, metrics=('my_metrics:of_texts',)))
  with pytest.raises(ConfigError, match=r'EvaluationConfig.metrics is .my_metrics:shared., .*Did you mean .share.'):
    evaluate_run(evaluation_config(model_dir, metrics=('my_metrics:shared',)))


def test_steps_that_an_older_version_evaluated_are_not_evaluated_again(model_dir):
  older = model_dir / 'eval' / 'repeat_letters' / 'metrics.jsonl'
  older.parent.mkdir(parents=True)
  older.write_text('{"step": 0, "cross_ent_loss": 3.5}\n{"step": 10, "first_letters": 7.0}\n')
  kept = older.read_bytes()
  assert evaluate_run(evaluation_config(model_dir, 'repeat_letters', checkpoints='all', num_examples=2)) == 0
  assert older.read_bytes() == kept
  assert [line['step'] for line in read(model_dir / 'eval' / 'repeat_letters.metrics' / 'metrics.jsonl')] == [20]


def test_new_checkpoints_are_evaluated_as_they_come(tmp_path):
  write_checkpoints(tmp_path, steps=(10,))
  later = threading.Timer(3, write_checkpoints, (tmp_path,), dict(steps=(20,)))
  later.start()
  config = evaluation_config(tmp_path, task='repeat_letters', checkpoints='new')
  assert evaluate_run(config) == 0
  later.join()
  assert [line['step'] for line in read(tmp_path / 'eval' / 'repeat_letters.metrics' / 'metrics.jsonl')] == [10, 20]


@pytest.mark.parametrize(
  ('task', 'fields', 'message'),
  [
    ('repeat_no_metric', {}, 'has no metric to evaluate'),
    ('repeat_no_example', {}, 'has no example in its split'),
    ('repeat_broken_metric', {}, 'nothing to divide by; see to its metric_fns'),
    ('repeat_lettres', {}, "Did you mean 'repeat_letters'?"),
    ('repeat_other_vocabulary', {}, 'has another vocabulary than the checkpoint was trained with'),
    ('repeat_letters', {'step': 15}, 'Steps that can be read: 10, 20'),
  ],
)
def test_mistakes_are_named(model_dir, task, fields, message):
  with pytest.raises(ConfigError) as caught:
    evaluate_run(evaluation_config(model_dir, task=task, **fields))
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not (model_dir / 'predictions').exists()


def test_a_task_with_other_features_is_said(tmp_path, tasks, capsys):
  record = {'inputs': {'add_eos': False, 'dtype': 'int32'}, 'targets': {'add_eos': True, 'dtype': 'int32'}}
  write_checkpoints(tmp_path, steps=(20,), features=record)
  assert evaluate_run(evaluation_config(tmp_path, task='repeat_scores')) == 0
  said = 'repeat_scores is another task than that of the checkpoint: add_eos of inputs was False and is True\n'
  assert said in capsys.readouterr().out


def test_a_decoder_only_model_predicts_and_chooses(tmp_path):
  write_checkpoints(tmp_path, steps=(20,), config=DECODER)
  assert evaluate_run(evaluation_config(tmp_path, task='repeat_scores')) == 0
  records = read(tmp_path / 'predictions' / 'repeat_scores' / '20.jsonl')
  generator = Generator.from_checkpoint(tmp_path, batch_size=8, add_eos=True)
  assert [record['prediction'] for record in records] == generator(TEXTS[:3])

  questions = {'inputs': ['one', 'two'], 'choices': [['ab', 'c', 'def'], ['g', 'hi', 'j']], 'answer': [2, 0]}
  source = seqio.FunctionDataSource(
    lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(questions), ['validation']
  )
  multiple_choice.add_task('choices', source, [], VOCABULARY, with_eos=False)
  assert evaluate_run(evaluation_config(tmp_path, task='choices')) == 0
  remove_task('choices')
  [line] = read(tmp_path / 'eval' / 'choices.metrics' / 'metrics.jsonl')
  scores = np.array([r['target_score'] for r in read(tmp_path / 'predictions' / 'choices' / '20.jsonl')]).reshape(2, 3)
  assert line['accuracy'] == 100 * np.mean(scores.argmax(axis=1) == [2, 0])
  assert line['accuracy_by_byte'] == 100 * np.mean((scores / [[2, 1, 3], [1, 2, 1]]).argmax(axis=1) == [2, 0])


def test_a_task_without_inputs_is_for_decoder_only_models(model_dir, tmp_path):
  """Its texts are scored whole; the model of the other run has an encoder."""
  write_checkpoints(tmp_path / 'decoder', steps=(20,), config=DECODER)
  seqio.TaskRegistry.add(
    'texts',
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices({'targets': TEXTS}), ['validation']
    ),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
    output_features={'targets': seqio.Feature(VOCABULARY)},
    metric_fns=[lambda targets, scores: {'mean': np.mean(scores)}],
  )
  config = evaluation_config(tmp_path / 'decoder', 'texts')
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, feature_lengths={'targets': 8}))
  assert evaluate_run(config) == 0
  with pytest.raises(ConfigError, match='texts has no inputs and the model has an encoder'):
    evaluate_run(dataclasses.replace(config, model_dir=str(model_dir)))
  remove_task('texts')
  records = read(tmp_path / 'decoder' / 'predictions' / 'texts' / '20.jsonl')
  assert [record['targets'] for record in records] == TEXTS
  [line] = read(tmp_path / 'decoder' / 'eval' / 'texts.metrics' / 'metrics.jsonl')
  assert line['mean'] == pytest.approx(np.mean([record['target_score'] for record in records]))


def test_a_folder_without_a_run(tmp_path):
  with pytest.raises(ConfigError, match='no such folder'):
    evaluate_run(evaluation_config(tmp_path / 'none'))
  with pytest.raises(ConfigError, match='no complete checkpoint'):
    evaluate_run(evaluation_config(tmp_path))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(checkpoints='every'), "one of 'latest', 'all', 'new'"),
    (dict(checkpoints='all', step=3), "it goes with checkpoints='latest'"),
    (dict(capacity_factors=()), 'drops no token'),
    (dict(capacity_factors=(1.0, 1.0)), 'name each factor once'),
    (dict(num_examples=0), 'at least 1'),
  ],
)
def test_wrong_settings_are_named(fields, message):
  with pytest.raises(ConfigError) as caught:
    evaluation_config('run', **fields)
  assert message in str(caught.value)
