"""What stands beside the weights in a Hugging Face folder: tokenizer, generation config and model card."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import switch_jax
from switch_jax import data
from switch_jax.config import ConfigError, ModelConfig
from switch_jax.folders.model_dir import ModelDir
from switch_jax.interop import huggingface_tokenizer

CARD, GENERATION = 'README.md', 'generation_config.json'
_SIZES = ('vocab_size', 'emb_dim', 'num_heads', 'head_dim', 'mlp_dim', 'num_encoder_layers', 'num_decoder_layers')
_OF_MOE = ('router', 'num_experts', 'encoder_layers', 'decoder_layers', 'train_capacity_factor', 'eval_capacity_factor')
_OF_DATA = ('mixture_or_task_name', 'train_split', 'feature_lengths', 'batch_size')
# Of lines of metrics: what tells of the run's machine, not of the model.
_NOT_OF_MODEL = re.compile(r'step$|.*per_second|.*seconds|host_|device_|input_wait|grad_norm|learning_rate|.*/')


def check_license(name: str | None) -> None:
  """Raises a `ConfigError` unless a licence is named as the hub names licences."""
  if name is not None and not re.fullmatch(r'[a-z0-9][a-z0-9.-]*', name):
    raise ConfigError(
      f'--license is {name!r}; the hub names licences in small letters, digits, points and hyphens: apache-2.0, mit, '
      'cc-by-4.0, or other.'
    )


def make_files(
  config: ModelConfig, record: Mapping[str, Any], step: int | None, model_dir: str | None, license: str | None
) -> tuple[dict[str, bytes], str]:
  """Returns content by name, and of the tokenizer in words.

  Args:
    config: the model.
    record: `config.json` of the checkpoint if it is one of ours, else empty.
    step: of the checkpoint.
    model_dir: the run's folder, which has its metrics; None if there is none.
    license: that the user names; None leaves the field out.
  """
  run = _object(record, 'run')
  lengths = _object(_object(run, 'data'), 'feature_lengths')
  start = 'bos_token_id' if config.is_decoder_only else 'decoder_start_token_id'
  if vocabulary := _object(record, 'vocabulary'):
    add_eos = data.recorded_add_eos(record, 'inputs')
    if config.is_decoder_only:  # a text is the beginning of a row: after the start symbol, and not ended
      length = row_length(record)
      tokenizer = huggingface_tokenizer.export(vocabulary, model_dir, length, add_eos is True, begins=True)
    else:
      tokenizer = huggingface_tokenizer.export(vocabulary, model_dir, lengths.get('inputs'), add_eos is not False)
  else:
    tokenizer = huggingface_tokenizer.Export({}, 'none: the checkpoint does not record its vocabulary')
  generation = generation_config(config.vocab_size, tokenizer.size, lengths.get('targets'), start)
  files = tokenizer.files | {
    GENERATION: (json.dumps(generation, sort_keys=True) + '\n').encode(),
    CARD: model_card(config, run, step, ModelDir(model_dir) if model_dir else None, license, tokenizer).encode(),
  }
  return files, tokenizer.words


def row_length(record: Mapping[str, Any]) -> int | None:
  """Returns the tokens of a row that the run's features make together; None where `config.json` does not say."""
  lengths = _object(_object(_object(record, 'run'), 'data'), 'feature_lengths').values()
  return sum(lengths) if lengths and all(isinstance(length, int) for length in lengths) else None


def generation_config(
  vocab_size: int, known: int | None, targets_length: int | None, start: str = 'decoder_start_token_id'
) -> dict[str, Any]:
  """Returns `generation_config.json`: greedy, as `--run_mode=infer`, which never chooses padding or an unused row.

  Args:
    vocab_size: rows of the embedding.
    known: ids that the vocabulary has; None if it is not known.
    targets_length: of the run, in tokens.
    start: what the start symbol is called.
  """
  content = {start: 0, 'eos_token_id': 1, 'pad_token_id': 0, 'do_sample': False, 'num_beams': 1}
  content |= {'max_new_tokens': targets_length} if targets_length else {}
  return content | ({'suppress_tokens': [0, *range(known, vocab_size)]} if known is not None else {})


def model_card(
  config: ModelConfig,
  run: Mapping[str, Any],
  step: int | None,
  model_dir: ModelDir | None,
  license: str | None,
  tokenizer: huggingface_tokenizer.Export,
) -> str:
  """Returns README.md, as the hub reads it: what is known, in tables; no path of the machine."""
  moe = config.moe
  sparse, dense, auto = ('switch_transformers', 't5', 'AutoModelForSeq2SeqLM')
  kind = f'Switch Transformer with {moe.num_experts} experts' if moe else 'dense T5'
  if config.is_decoder_only:
    sparse, dense, auto = 'mixtral', 'llama', 'AutoModelForCausalLM'
    kind = f'Mixtral with {moe.num_experts} experts, {moe.experts_per_token} a token' if moe else 'Llama'
  front = ['---', *([f'license: {license}'] if license else []), 'library_name: transformers', 'tags:']
  front += [f'- {tag}' for tag in (sparse if moe else dense, 'jax', 'switch_jax')]
  at = '' if step is None else f' at step {step:,}'
  text = [*front, '---', '', f'# {kind}', '', f'Exported by switch_jax {switch_jax.__version__}{at}.', '']
  if not license:
    text += ['No licence was named at the export.', '']
  use = [f'from transformers import {auto}, AutoTokenizer', '']
  use += [f"model = {auto}.from_pretrained('.')"]
  if tokenizer.files:
    use += ["tokenizer = AutoTokenizer.from_pretrained('.')"]
    use += ["batch = tokenizer(['...'], padding=True, return_tensors='pt')"]
    use += ['print(tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True))']
  text += ['```python', *use, '```', '', f'Tokenizer: {tokenizer.words if tokenizer.files else "none"}.', '']
  values = {name: getattr(config, name) for name in _SIZES}
  values |= {'activations': ', '.join(config.mlp_activations)}
  values |= {name: getattr(moe, name) for name in _OF_MOE} if moe else {}
  text += _table('Model', values)
  trained = {name: value for name in _OF_DATA if (value := _object(run, 'data').get(name)) is not None}
  trained |= {name: run[name] for name in ('train_steps', 'random_seed') if name in run}
  trained |= {k: v for k, v in _object(run, 'optimizer').items() if k in ('name', 'schedule', 'learning_rate')}
  renamed = {'name': 'optimizer', 'mixture_or_task_name': 'task'}
  text += _table('Data and training', {renamed.get(name, name): value for name, value in trained.items()})
  for title, metrics in _metrics(model_dir, step).items():
    text += _table(title, metrics)
  return '\n'.join(text).rstrip() + '\n'


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """Returns an object of `config.json`, empty where there is none."""
  value = values.get(name)
  return value if isinstance(value, Mapping) else {}


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
  """Returns the lines of a table, none if nothing is in it."""
  if not values:
    return []
  shown = {name: f'{value:.4g}' if isinstance(value, float) else str(value) for name, value in values.items()}
  rows = [f'| {name} | {" ".join(value.split()).replace("|", " ")} |' for name, value in shown.items()]
  return [f'## {title}', '', '| | |', '|---|---|', *rows, '']


def _metrics(model_dir: ModelDir | None, step: int | None) -> dict[str, dict[str, float]]:
  """Returns, by title, what the run's folder has of a step, or else of the last one before it."""
  if model_dir is None or step is None:
    return {}
  series = {'Training': model_dir.read_train()}
  for task in model_dir.tasks():
    series |= {
      f'Held out, {task}': model_dir.read_held_out(task),
      f'Metrics, {task}': model_dir.read_task_metrics(task),
    }
  found = {}
  for title, lines in series.items():
    if line := max((line for line in lines if line['step'] <= step), key=lambda line: line['step'], default=None):
      values = {name: value for name, value in line.items() if not _NOT_OF_MODEL.match(name)}
      numbers = {name: float(v) for name, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
      found[f'{title} (step {line["step"]:,})'] = numbers
  return found
