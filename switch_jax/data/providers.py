"""From a configuration to the SeqIO task or mixture it names, its vocabulary, and what identifies its data."""

import hashlib
import importlib.util
import json
import os
import types
from collections.abc import Mapping

from switch_jax.config import ConfigError, DataConfig, suggest
from switch_jax.data.features import NEW_IN_FINGERPRINT, describe_features, fingerprint_features
from switch_jax.data.padded_rows import are_left_whole
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.task_errors import OF_USERS, check_features, check_rates, explain, failing
from switch_jax.data.vocabularies import check_vocabulary, make_vocabulary, vocabulary_digest

# Raise this when code here changes which rows come out, so that no run is continued on other data unawares.
PIPELINE_VERSION = 1
# The same for rows of one example. They are padded together since 2: the rows are those of 1, the iterators are not.
PADDED_PIPELINE_VERSION = 2
# And of tasks whose examples fit, which are not cut since 3.
FITTING_PIPELINE_VERSION = 3
_SAME_ROWS = {(1, 2), (1, 3), (2, 3)}


def import_task_module(config: DataConfig) -> types.ModuleType | None:
  """Imports the module that registers the task, and lets it register what depends on the configuration.

  Raises:
    ConfigError: it cannot be imported.
  """
  if config.cached_tasks_dir:
    seqio.add_global_cache_dirs([config.cached_tasks_dir])
  if config.task_module is None:
    _check_languages(config, None)
    return None
  name = config.task_module
  try:
    module = importlib.import_module(_full_name(name))
  except ConfigError:
    raise
  except OF_USERS as error:  # whatever a user's module does wrong while it is imported
    rule = 'mend the module (--debug has the traceback).'
    if isinstance(error, ImportError | TypeError | ValueError) and f'{name}.'.startswith(
      f'{getattr(error, "name", "")}.'
    ):
      rule = 'it must be the dotted name of a module on the Python path, such as switch_jax.tasks.docstrings.'
    raise ConfigError(
      f'DataConfig.task_module is {name!r}, which cannot be imported ({explain(error)}); {rule}'
    ) from error
  _check_languages(config, module)
  if hasattr(module, 'register'):
    with failing(f'register() of the task module {name} failed', 'mend it there'):
      module.register(config)
  return module


def _full_name(name: str) -> str:
  """Returns what to import a task module by: `tasks.NAME` is the user's if there is one, else `switch_jax.tasks.NAME`.

  The latter had the short name once, so gin files of old runs have it.
  """
  ours = importlib.util.find_spec(f'switch_jax.{name}') if name.startswith('tasks.') else None
  if ours is None or ours.origin is None:
    return name
  try:
    theirs = importlib.util.find_spec(name)
  except ModuleNotFoundError as error:
    if error.name not in ('tasks', name):
      raise
    theirs = None
  if theirs is None or theirs.origin is None or os.path.samefile(theirs.origin, ours.origin):
    return ours.name
  return name


def _check_languages(config: DataConfig, module: types.ModuleType | None) -> None:
  """Raises where languages are set and nothing reads them; a module that does has `READS_LANGUAGES = True`."""
  for name in ('languages', 'sampling_exponent'):
    if (value := getattr(config, name)) is not None and not getattr(module, 'READS_LANGUAGES', False):
      raise ConfigError(
        f'DataConfig.{name} is {value!r}, but the tasks of {config.task_module} have no languages to choose from; '
        'leave it None, or use task_module switch_jax.tasks.multilingual.'
      )


def find_provider(config: DataConfig, split: str) -> seqio.Task | seqio.Mixture:
  """Returns the registered task or mixture of the configuration, after its module has been imported.

  Args:
    config: names it.
    split: the split that will be read.

  Raises:
    ConfigError: no such name, no such split, features other than token sequences `inputs` and `targets` of one
      vocabulary, or a vocabulary that cannot be read.
  """
  name = config.mixture_or_task_name
  known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
  if name not in known:
    where = f'after importing {config.task_module}' if config.task_module else 'and no task_module was named'
    listed = ', '.join(known[:10]) + (', ...' if len(known) > 10 else '') if known else 'none'
    raise ConfigError(
      f'DataConfig.mixture_or_task_name is {name!r}, which is no registered task or mixture, {where} '
      f'(registered: {listed}).{suggest(name, known)} Set MIXTURE_OR_TASK_NAME, or the task_module that registers it.'
    )
  with failing(f'{name} cannot be used', 'mend the task'):
    provider = seqio.get_mixture_or_task(name)
    splits, features = sorted(provider.splits), provider.output_features
  if split not in splits:
    raise ConfigError(
      f'{name} has no split {split!r}; it has {", ".join(splits)}.{suggest(split, splits)} '
      'Set train_split and eval_split of DataConfig.'
    )
  _check_features(name, set(features), config)
  if 'inputs' in features and features['inputs'].vocabulary != features['targets'].vocabulary:
    raise ConfigError(f'{name} has different vocabularies for inputs and targets; the model has one; use another task.')
  check_features(provider, features)
  vocabulary = features['targets'].vocabulary
  if config.vocabulary is not None and vocabulary != make_vocabulary(config.vocabulary):
    raise ConfigError(
      f'DataConfig.vocabulary is {config.vocabulary!r}, but {name} has a vocabulary of its own; leave VOCABULARY at '
      'None, or let the function register(data) of the task module use data.vocabulary.'
    )
  check_vocabulary(vocabulary)
  if vocabulary.eos_id is None or vocabulary.pad_id != 0:
    raise ConfigError(
      f'the vocabulary of {name}, a {type(vocabulary).__name__}, has EOS {vocabulary.eos_id} and padding '
      f'{vocabulary.pad_id}; the model needs an EOS, and 0 for padding; use another vocabulary.'
    )
  if isinstance(provider, seqio.Mixture):
    check_rates(provider, split)
  _check_weights(provider, split)
  return provider


def _check_features(name: str, features: set[str], config: DataConfig) -> None:
  """Raises where a task's features are not those whose lengths the configuration gives."""
  if not (missing := set(config.feature_lengths) - features):
    if 'inputs' in features and 'inputs' not in config.feature_lengths:
      raise ConfigError(
        f'DataConfig.feature_lengths is {config.feature_lengths!r}, and {name} has inputs too; give both lengths, as '
        "{'inputs': 512, 'targets': 114}, or use a task without inputs."
      )
    return
  other = ", or a decoder-only model with TASK_FEATURE_LENGTHS={'targets': 512}" if missing == {'inputs'} else ''
  raise ConfigError(
    f'{name} has the features {sorted(features)}; an encoder-decoder needs inputs and targets; use another task{other}.'
  )


def _check_weights(provider: seqio.Task | seqio.Mixture, split: str) -> None:
  """Raises where all tasks of a mixture that have the split have the weight zero, so that none could be drawn.

  Raises:
    ConfigError: names them.
  """
  if not isinstance(provider, seqio.Mixture):
    return
  tasks = [task for task in provider.tasks if split in task.splits]
  if tasks and not any(provider.get_rate(task) > 0 for task in tasks):
    names = ', '.join(task.name for task in tasks[:5]) + (', ...' if len(tasks) > 5 else '')
    raise ConfigError(
      f'The mixture {provider.name} has the weight zero: so have all its tasks with a split {split!r} ({names}), or '
      'they have no examples; give one of them a positive weight, or train on a task.'
    )


def vocabulary_of(config: DataConfig) -> seqio.Vocabulary:
  """Returns the vocabulary of a configuration's task or mixture.

  Raises:
    ConfigError: the module or the name is wrong.
  """
  import_task_module(config)
  return find_provider(config, config.train_split).output_features['targets'].vocabulary


def _corpus_digest(
  config: DataConfig, module: types.ModuleType | None, provider: seqio.Task | seqio.Mixture
) -> str | int | None:
  """Returns what identifies the text, from the task's module or else from what SeqIO knows of the sources.

  Modules may give a number, or None for nothing: runs that recorded these go on.
  """
  if module is not None and hasattr(module, 'corpus_digest'):
    with failing(f'corpus_digest() of the task module {config.task_module} failed', 'mend it there'):
      digest = module.corpus_digest(config)
    if not isinstance(digest, str | int | None):
      raise ConfigError(
        f'corpus_digest() of the task module {config.task_module} returned {digest!r}'[:300]
        + '; it must return text, such as a hexadecimal sha256.'
      )
    return digest
  tasks = []
  for task in seqio.get_subtasks(provider):
    with failing(f'the number of examples of {task.name} cannot be had', 'mend num_input_examples of its source'):
      count = task.num_input_examples(config.train_split) if config.train_split in task.splits else None
      tasks.append([task.name, count if isinstance(count, int | float | None) else int(count)])  # NumPy's are neither
  return hashlib.sha256(json.dumps(tasks).encode()).hexdigest()


def describe_text(config: DataConfig, module: types.ModuleType | None) -> str | None:
  """Returns what the task's module says of its text when a run begins, one line, or None."""
  if module is None or not hasattr(module, 'describe'):
    return None
  with failing(f'describe() of the task module {config.task_module} failed', 'mend it there'):
    return ' '.join(str(module.describe(config)).split())


def look_at(config: DataConfig) -> str | None:
  """Reads and checks what a configuration names; returns what the task's module says of its text, or None.

  Raises:
    ConfigError: the task cannot be found or read.
  """
  module = import_task_module(config)
  for split in (config.train_split, config.eval_split):
    find_provider(config, split)
  return describe_text(config, module)


def inputs_template(config: DataConfig, module: types.ModuleType | None) -> str | None:
  """Returns the text with `{column}` that makes the inputs of a row of the task's tables; None for other tasks."""
  if module is None or config.tables is None or not hasattr(module, 'template'):
    return None
  return module.template(config)


def fingerprint(
  config: DataConfig,
  seed: int,
  module: types.ModuleType | None,
  provider: seqio.Task | seqio.Mixture,
  decoder_only: bool = False,
) -> dict[str, str | int]:
  """Returns everything that decides which rows training sees; a data position is good only where all of it agrees."""
  rates = ''
  if isinstance(provider, seqio.Mixture):
    rates = json.dumps({task.name: provider.get_rate(task) for task in provider.tasks}, sort_keys=True)
  return {
    'task': config.mixture_or_task_name,
    'mixing_rates': rates,
    'split': config.train_split,
    **{f'{feature}_length': length for feature, length in config.feature_lengths.items()},
    **({'decoder_only': 1, 'loss_on_targets_only': int(config.loss_on_targets_only)} if decoder_only else {}),
    'batch_size': config.batch_size,
    'seed': seed,
    'num_data_shards': config.num_data_shards,
    'shuffle_buffer_size': config.shuffle_buffer_size if config.shuffle else 0,
    'pack': int(config.pack),
    'use_cached_tasks': int(config.use_cached_tasks),
    'vocabulary': vocabulary_digest(provider.output_features['targets'].vocabulary),
    **fingerprint_features(describe_features(provider, config.feature_lengths)),
    'corpus': _corpus_digest(config, module, provider),
    'pipeline_version': _pipeline_version(provider, config, decoder_only),
    'seqio': seqio.__version__,
    'tensorflow': tf.__version__,
  }


def _pipeline_version(provider: seqio.Task | seqio.Mixture, config: DataConfig, decoder_only: bool) -> int:
  if are_left_whole(provider, config, decoder_only):
    return FITTING_PIPELINE_VERSION
  return PIPELINE_VERSION if config.pack or decoder_only else PADDED_PIPELINE_VERSION


# What to do about a difference; for all others the setting itself is the remedy.
_REMEDIES = {
  'corpus': (
    'restore the text, that is the files of TEXT_FILES, the files of TASK_FILES and what is said of their columns, or '
    'the versions of the installed packages (where they are the same, an older switch_jax read them in another way, '
    'see CHANGELOG.md: begin a new run)'
  ),
  'vocabulary': "restore the task's vocabulary",
  'inputs_features': "restore the task's output_features",
  'targets_features': "restore the task's output_features",
  'pipeline_version': 'install the version of switch_jax that wrote it',
  'seqio': 'install that version of seqio',
  'tensorflow': 'install that version of tensorflow',
}


def has_other_iterators(saved: Mapping[str, str | int], current: Mapping[str, str | int]) -> bool:
  """Whether the rows of a saved position are this run's, but not the iterators: these have to make them again."""
  return (saved.get('pipeline_version'), current.get('pipeline_version')) in _SAME_ROWS


def check_fingerprint(saved: dict[str, str | int], current: dict[str, str | int]) -> None:
  """Raises a `ConfigError` that names every difference between a saved fingerprint and this run's."""

  def short(value: str | int | None) -> str:
    return repr(value[:16]) if isinstance(value, str) and len(value) == 64 else repr(value)  # a digest

  if has_other_iterators(saved, current):
    saved = {**saved, 'pipeline_version': current['pipeline_version']}
  differences = [
    f'{name} was {short(saved.get(name))} and is {short(current.get(name))}: {_REMEDIES.get(name, "set it back")}'
    for name in dict.fromkeys([*current, *saved])
    if saved.get(name) != current.get(name) and not (name in NEW_IN_FINGERPRINT and name not in saved)
  ]
  if differences:
    raise ConfigError(
      f'The checkpoint was made on other data; {"; ".join(differences)}. A MODEL_DIR belongs to one task, lengths, '
      'batch size, seed, and corpus: other data needs another MODEL_DIR.'
    )
