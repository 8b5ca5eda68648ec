"""Metrics of SeqIO tasks over the checkpoints of a run, by SeqIO's own Evaluator.

The Evaluator reads the tasks, runs the model functions given to it, postprocesses, and computes each task's metrics.
Which checkpoints, where the numbers go, and what is said of what cannot work is decided here. Nothing that training
writes is touched, so a run can be evaluated while it goes on.
"""

import dataclasses
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from switch_jax.checkpoints import CheckpointError, CheckpointStore
from switch_jax.config import ConfigError, EvaluationConfig, first_line
from switch_jax.config.named_objects import load_object
from switch_jax.data import providers
from switch_jax.data.features import differing_features
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.sentinels import decode_tokens
from switch_jax.data.streams import check_ids, explain_reading
from switch_jax.data.task_errors import OF_USERS, failing, said_and_where
from switch_jax.data.vocabularies import recorded_name, vocabulary_digest
from switch_jax.inference.decoding import Ids
from switch_jax.inference.evaluation_records import EvaluationFiles, mixture_averages, note
from switch_jax.inference.generator import decode_batch
from switch_jax.inference.loading import LoadedModel, check_batch_size, latest_step, load_model, open_store
from switch_jax.inference.scoring import make_score, with_capacity

_OUTPUTS = seqio.metrics.ModelOutputType


class TaskEvaluator:
  """The tasks of a configuration, read once, ready to be evaluated with any model of the same vocabulary."""

  def __init__(self, config: EvaluationConfig):
    """Imports and reads the tasks.

    Raises:
      ConfigError: the task cannot be found or read, or has no metric, or no example.
    """
    data, self.config = config.data, config
    module = providers.import_task_module(data)
    provider = self._provider = providers.find_provider(data, data.eval_split)
    self.vocabulary = provider.output_features['targets'].vocabulary
    self.description = providers.describe_text(data, module) if data.tables else None  # what of columns was guessed
    self._template = providers.inputs_template(data, module)
    self._has_inputs = 'inputs' in data.feature_lengths
    self.ids = Ids(size=self.vocabulary.vocab_size, eos=self.vocabulary.eos_id)
    tasks = seqio.get_subtasks(provider)
    _set_metrics(tasks, config.metrics)
    with failing(f'the metrics of {data.mixture_or_task_name} cannot be used', 'mend metric_fns of the task'):
      metrics = {task.name: [*task.metric_fns, *task.metric_objs] for task in tasks}
    without = [t.name for t in tasks if data.eval_split in t.splits and not metrics[t.name]]
    absent = [t.name for t in tasks if data.eval_split not in t.splits]
    if len(without) + len(absent) == len(tasks):
      raise ConfigError(
        f'{data.mixture_or_task_name} has no metric to evaluate (tasks without metric_fns: {", ".join(without)}); add '
        'metric_fns to the task, or evaluate another one. Its loss is what training reports in eval/.'
      )
    for names, what in ((without, 'has no metric'), (absent, f'has no split {data.eval_split!r}')):
      for name in names:
        note(f'left out: {name} {what}')
    try:
      self._evaluator = seqio.Evaluator(
        data.mixture_or_task_name,
        (seqio.EncDecFeatureConverter if self._has_inputs else seqio.LMFeatureConverter)(pack=False),
        eval_split=data.eval_split,
        use_cached=data.use_cached_tasks,
        sequence_length=data.feature_lengths,
        num_examples=config.num_examples,
        async_compute_metrics=False,
      )
      self.sizes = {name: _count(ds) for name, ds in self._evaluator.cached_model_datasets.items()}
    except ConfigError:
      raise
    except (OSError, tf.errors.NotFoundError) as error:
      raise ConfigError(
        f'{data.mixture_or_task_name} cannot be read ({first_line(error)}); put its data set where TensorFlow '
        'Datasets looks (TFDS_DATA_DIR), or see to the files that the task names.'
      ) from error
    except OF_USERS as error:
      raise explain_reading(provider, data, data.eval_split, error) from error
    for task in self.tasks:
      if self.sizes[task.name] == 0:
        raise ConfigError(
          f'{task.name} has no example in its split {data.eval_split!r}, so there is no prediction to measure; check '
          'its source and preprocessors, or set another EVAL_SPLIT.'
        )
      unknown = {m.model_output_type for m in task.metric_objs} - {
        _OUTPUTS.PREDICTION,
        _OUTPUTS.PREDICTION_WITH_AUX,
        _OUTPUTS.SCORE,
      }
      if unknown:
        names = ', '.join(sorted(o.name for o in unknown))
        raise ConfigError(f'a metric of {task.name} needs the model output {names}; known are predictions and scores.')

  @property
  def tasks(self) -> Sequence[seqio.Task]:
    """The tasks that have metrics."""
    return self._evaluator.eval_tasks

  def check_model(self, model: LoadedModel) -> None:
    """Raises a `ConfigError` if the model was trained with another vocabulary, or the batch does not divide."""
    check_batch_size(self.config.data.batch_size, model.layout, 'DataConfig')
    if not (self._has_inputs or model.config.is_decoder_only):
      raise ConfigError(
        f'{self.config.data.mixture_or_task_name} has no inputs and the model has an encoder, which needs some; '
        'evaluate a task that has inputs.'
      )
    recorded = (model.record.get('vocabulary') or {}).get('digest')
    if recorded is not None and recorded != vocabulary_digest(self.vocabulary):
      raise ConfigError(
        f'{self.config.data.mixture_or_task_name} has another vocabulary than the checkpoint was trained with '
        f'({self.vocabulary.vocab_size} ids and {model.record["vocabulary"]["size"]}); set --gin.VOCABULARY to the '
        'one of the run, or evaluate a task that has it.'
      )
    if self._template and (before := model.record.get('template', self._template)) != self._template:
      note(f'the checkpoint was trained on inputs {before!r} and is evaluated on {self._template!r}')
    lengths = self.config.data.feature_lengths
    if differ := differing_features(model.record.get('features'), self._provider, lengths):
      note(f'{self.config.data.mixture_or_task_name} is another task than that of the checkpoint: {"; ".join(differ)}')
    if self.ids.size > model.config.vocab_size:
      raise ConfigError(
        f'the vocabulary of {self.config.data.mixture_or_task_name} has {self.ids.size} ids and the model '
        f'{model.config.vocab_size}; evaluate a task with the vocabulary of the model.'
      )

  def evaluate(self, model: LoadedModel) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Evaluates all tasks with a model, at the capacity of its configuration.

    Returns:
      By task its metrics, and what was predicted for each example.

    Raises:
      ConfigError: a metric of a task failed.
    """
    functions = _ModelFunctions(self, model)
    logger = logging.getLogger('absl')  # SeqIO logs what it then raises
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
      future, outputs = self._evaluator.evaluate(
        compute_metrics=True,
        step=model.step,
        model_fns={
          _OUTPUTS.PREDICTION: functions.predict,
          _OUTPUTS.PREDICTION_WITH_AUX: functions.predict_with_scores,
          _OUTPUTS.SCORE: functions.score,
        },
      )
      metrics = future.result()
    except ValueError as error:
      match = re.match(r'Failed to evaluate task ([^ ]+): ', str(error))
      if not match:
        raise
      said, where = said_and_where(error.__cause__ or error)
      raise ConfigError(
        f'a metric cannot be computed: Failed to evaluate task {match[1]}{where}: {said}; see to its metric_fns and '
        'its postprocess_fn (--debug has the traceback).'
      ) from error
    except SystemExit as error:  # which SeqIO lets through
      said, where = said_and_where(error)
      raise ConfigError(
        f'a metric of {self.config.data.mixture_or_task_name} ended the program{where}: {said}; see to metric_fns and '
        'postprocess_fn of its tasks (--debug has the traceback).'
      ) from error
    finally:
      logger.setLevel(level)
    return metrics, {task.name: self._describe(task, outputs[task.name]) for task in self.tasks}

  def _describe(self, task: seqio.Task, outputs: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Returns inputs, target and prediction of each example as texts, and the score."""
    records = []
    for example in self._evaluator.cached_task_datasets[task.name].as_numpy_iterator():
      record = {}
      for name in self.config.data.feature_lengths:
        kept = example.get(f'{name}_pretokenized')
        if isinstance(kept, bytes):
          record[name] = kept.decode('utf-8', 'replace')
        else:
          record[name] = decode_tokens(self.vocabulary, example[name])
      records.append(record)
    for kind, output in outputs.items():
      values, auxiliary = output if isinstance(output, tuple) else (output, {})
      for i, value in enumerate(values):
        if kind == _OUTPUTS.SCORE:
          records[i]['target_score'] = float(value)
        else:
          records[i]['prediction'] = decode_tokens(self.vocabulary, value)
          if 'scores' in auxiliary:
            records[i]['score'] = float(auxiliary['scores'][i])
    return records

  def batches(self, dataset: tf.data.Dataset, num_ids: int) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yields the numbers, `inputs` and `targets` of at most `batch_size` examples, of tokens below `num_ids`."""
    size = self.config.data.batch_size
    for numbers, features in dataset.batch(size).as_numpy_iterator():
      check_ids([features], num_ids, self.config.data.mixture_or_task_name)
      targets = features['decoder_target_tokens']
      # No inputs are the empty text.
      inputs = features['encoder_input_tokens'] if self._has_inputs else np.zeros_like(targets[:, :1])
      yield [int(n) for n in numbers], {'inputs': inputs, 'targets': targets}


def _set_metrics(tasks: Sequence[seqio.Task], names: Sequence[str]) -> None:
  """Gives every task the metrics that are named as `module:function`, beside those it was registered with.

  SeqIO has no public way: a mixture holds its tasks, and these compute what is in a private list when they are asked.
  """
  functions = [load_object(name, 'EvaluationConfig.metrics') for name in names]
  for task in tasks:
    registered = vars(task).setdefault('_registered_metric_fns', task._metric_fn_constructor_args)
    task._metric_fn_constructor_args = [*registered, *functions]
    for cached in ('_all_metric_fns', 'predict_with_aux_metric_fns', 'metric_objs'):
      vars(task).pop(cached, None)


class _ModelFunctions:
  """What SeqIO's Evaluator asks of a model. Examples are decoded once, whoever asks."""

  def __init__(self, owner: TaskEvaluator, model: LoadedModel):
    self._owner, self._model, self._decoded = owner, model, {}

  def _predict(self, dataset: tf.data.Dataset) -> tuple[list[tuple[int, list[int]]], list[float]]:
    if id(dataset) not in self._decoded:
      owner, tokens, scores = self._owner, [], []
      for numbers, features in owner.batches(dataset, self._model.config.vocab_size):
        targets, found = decode_batch(
          self._model,
          owner.config.decoding,
          owner.ids,
          owner.config.data.feature_lengths['targets'],
          features['inputs'],
          numbers,
          owner.config.data.batch_size,
        )
        tokens += [(n, [int(t) for t in row]) for n, row in zip(numbers, targets, strict=True)]
        scores += [float(score) for score in found]
      self._decoded[id(dataset)] = (tokens, scores)
    return self._decoded[id(dataset)]

  def predict(self, dataset: tf.data.Dataset) -> list[tuple[int, list[int]]]:
    return self._predict(dataset)[0]

  def predict_with_scores(self, dataset: tf.data.Dataset) -> Any:
    tokens, scores = self._predict(dataset)
    return tokens, {'scores': list(scores)}

  def score(self, dataset: tf.data.Dataset) -> list[tuple[int, float]]:
    function, size, found = make_score(self._model.config, self._model.layout), self._owner.config.data.batch_size, []
    for numbers, features in self._owner.batches(dataset, self._model.config.vocab_size):
      fill = ((0, size - len(numbers)), (0, 0))
      rows = (np.pad(features[name], fill) for name in ('inputs', 'targets'))
      scores = np.asarray(function(self._model.params, *rows))
      found += [(n, float(score)) for n, score in zip(numbers, scores, strict=False)]
    return found


def _count(dataset: tf.data.Dataset) -> int:
  return int(dataset.reduce(np.int64(0), lambda n, _: n + 1))


def _last_step_of_run(store: CheckpointStore, step: int) -> int | None:
  return store.read_config(step).get('run', {}).get('train_steps')


def _steps(config: EvaluationConfig, store: CheckpointStore, files: EvaluationFiles) -> Iterator[int]:
  """Yields the steps to evaluate; of `new` ones until the run's last is there."""
  if config.checkpoints == 'latest':
    yield latest_step(store) if config.step is None else config.step
    return
  done, waited = files.steps(), False
  while True:
    there = store.steps()
    if config.checkpoints == 'all' and not there:
      latest_step(store)  # says that there is none
    for step in there:
      if step not in done:
        done.add(step)
        yield step
    there = store.steps()
    if config.checkpoints == 'all' or (
      there and there[-1] in done and there[-1] == _last_step_of_run(store, there[-1])
    ):
      return
    if not set(there) - done:
      if not waited:
        note(f'waiting for checkpoints in {store.directory}')
        waited = True
      time.sleep(config.poll_seconds)


def _with_recorded_vocabulary(config: EvaluationConfig, store: CheckpointStore) -> EvaluationConfig:
  """Returns a configuration whose tables, if it has any and no vocabulary, have that of the run."""
  step = store.latest_step() if config.step is None else config.step
  if config.data.tables is None or config.data.vocabulary is not None or step not in store.steps():
    return config
  name = recorded_name(store.read_config(step).get('vocabulary') or {}, store.model_dir)
  return dataclasses.replace(config, data=dataclasses.replace(config.data, vocabulary=name))


def evaluate_run(config: EvaluationConfig) -> int:
  """Evaluates the configured checkpoints and writes metrics and predictions; returns the exit status.

  Raises:
    ConfigError: the task cannot be evaluated, or a checkpoint cannot be read.
  """
  store = open_store(config.model_dir)
  if config.checkpoints == 'latest':
    latest_step(store)  # before the tasks are read, which can take long
  config = _with_recorded_vocabulary(config, store)
  evaluator = TaskEvaluator(config)
  if evaluator.description:
    note(f'text: {evaluator.description}')
  name = config.data.mixture_or_task_name
  names = [task.name for task in evaluator.tasks]
  is_mixture = names != [name]
  note(f'{name}: ' + ', '.join(f'{n} ({evaluator.sizes[n]} examples)' for n in names))
  files = EvaluationFiles(config.model_dir, [*names, *([name] if is_mixture else [])], active=jax.process_index() == 0)
  try:
    evaluated = 0
    for step in _steps(config, store, files):
      try:
        loaded = load_model(store, step, config.mesh)
      except CheckpointError:
        if config.checkpoints == 'latest' or step in store.steps():
          raise
        note(f'step {step:,} was removed by the run before it could be read')
        continue
      evaluator.check_model(loaded)
      metrics = {}
      for factor in config.capacity_factors:
        began = time.monotonic()
        model = LoadedModel(
          with_capacity(loaded.config, factor), loaded.layout, loaded.params, loaded.step, loaded.record
        )
        found, predictions = evaluator.evaluate(model)
        suffix = '' if factor is None else f'/capacity_{factor}'
        for task, values in found.items():
          metrics.setdefault(task, {}).update({f'{n}{suffix}': v for n, v in values.items()})
          files.write_predictions(task, step, suffix.replace('/', '_'), predictions[task])
        how = 'without dropping' if factor is None else f'at capacity factor {factor}'
        examples = sum(evaluator.sizes[task] for task in names)
        note(f'step {step:,} evaluated {how} on {examples:,} examples in {time.monotonic() - began:.1f} s')
      if is_mixture:
        metrics[name] = mixture_averages([metrics[task] for task in names])
      files.write_metrics(step, metrics)
      evaluated += 1
    if not evaluated:
      note('every checkpoint that is there has been evaluated before')
  finally:
    files.close()
  return 0
