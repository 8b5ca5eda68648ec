"""What each expert takes: the first choice of every router for every held-out token, counted by token and by group.

One forward pass a batch in evaluation mode. The logits are those that the `Router` modules return, caught on their way
(Flax's captured intermediates), so the model is computed as it always is. `MODEL_DIR/eval/<task>/experts_<step>.json`
keeps the counts in a form that a report can show without loading anything.
"""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from switch_jax import data
from switch_jax.config import ConfigError, DataConfig, MeshConfig, ModelConfig
from switch_jax.folders.metric_lines import replace_file
from switch_jax.folders.model_dir import ModelDir
from switch_jax.inference.loading import check_batch_size, latest_step, load_model, open_store
from switch_jax.interop.scanned import separate_layers
from switch_jax.model import Transformer
from switch_jax.model.parameters import Parameters
from switch_jax.model.routing import preference
from switch_jax.model.switch import Router
from switch_jax.parallel import Layout

# How many of the tokens that an expert takes most are kept.
KEPT_TOKENS = 24
# A token that an expert got only once or twice says nothing about it.
_MIN_COUNT = 3


@dataclasses.dataclass
class LayerCounts:
  """First choices of one router over all batches.

  Attributes:
    tokens: int64 `[vocab, experts]`.
    groups: int64 `[groups, experts]`; no rows where tokens carry no group.
  """

  tokens: np.ndarray
  groups: np.ndarray


def make_first_choices(config: ModelConfig, layout: Layout) -> Callable[[Parameters, Any], dict[str, jax.Array]]:
  """Returns the jitted `(params, batch) -> {layer: int32 [batch, length]}`: every router's first choice.

  It is the likeliest expert, or the one that biases prefer; a top-1 router has no other choice. Of expert choice, where
  experts choose, it is the expert that the token has the highest probability for. Layers are named as in metrics
  (`encoder_1`).

  Args:
    config: the model, with scanned layers or separate ones; its evaluation capacity holds.
    layout: where it is computed.
  """
  separate = dataclasses.replace(config, scan_layers=False, remat_policy='none')
  model = Transformer(separate, layout)
  is_router = lambda module, method: isinstance(module, Router) and method == '__call__'  # noqa: E731

  def first(logits, bias):
    return jnp.argmax(preference(logits, bias, config.experts), axis=-1).astype(jnp.int32)

  def first_choices(params, batch):
    if config.scan_layers:
      params = separate_layers(params, config)
    _, caught = model.apply({'params': params}, batch, capture_intermediates=is_router, mutable=['intermediates'])
    is_call = lambda x: isinstance(x, tuple)  # noqa: E731
    found = jax.tree_util.tree_flatten_with_path(caught['intermediates'], is_leaf=is_call)[0]
    return {_layer_name([key.key for key in path]): first(*output) for path, (output,) in found}

  return jax.jit(first_choices, out_shardings=layout.replicated())


def _layer_name(path: Sequence[str]) -> str:
  """Returns `encoder_1` for `encoder/layers_1/mlp/router`, `decoder_0_attention` for a router of attention."""
  stack, layer, part = path[:3]
  name = f'{stack}_{layer.removeprefix("layers_")}'
  return name if part == 'mlp' else f'{name}_attention'


def count_choices(
  first_choices: Callable[[Parameters, Any], dict[str, jax.Array]],
  params: Parameters,
  batches: Iterable[Mapping[str, jax.Array]],
  *,
  vocab_size: int,
  num_experts: int,
  num_groups: int = 0,
) -> dict[str, LayerCounts]:
  """Counts over batches which expert real tokens (those of a segment) choose first.

  In the decoder a token is the one that is read there, its target's predecessor; id 0 is the start of a target.

  Args:
    first_choices: of `make_first_choices`.
    params: of the model.
    batches: global batches as those of `EvaluationBatches`; `encoder_group_ids` and `decoder_group_ids`, if they are
      there, hold i + 1 for group i and 0 for none.
    vocab_size, num_experts, num_groups: sizes of the counts.

  Returns:
    The counts by layer.
  """
  empty = lambda rows: np.zeros((rows, num_experts), np.int64)  # noqa: E731
  counts: dict[str, LayerCounts] = collections.defaultdict(lambda: LayerCounts(empty(vocab_size), empty(num_groups)))
  for batch in batches:
    choices = jax.device_get(first_choices(params, batch))
    on_host = jax.device_get(dict(batch))
    for layer, experts in choices.items():
      stack = layer.partition('_')[0]
      real = on_host[f'{stack}_segment_ids'] > 0
      _add(counts[layer].tokens, on_host[f'{stack}_input_tokens'][real], experts[real])
      groups = on_host.get(f'{stack}_group_ids')
      if num_groups and groups is not None:
        known = real & (groups > 0)
        _add(counts[layer].groups, groups[known] - 1, experts[known])
  return dict(counts)


def _add(counts: np.ndarray, rows: np.ndarray, experts: np.ndarray) -> None:
  """Adds one to `counts[row, expert]` for each pair."""
  keys, times = np.unique(rows.astype(np.int64) * counts.shape[1] + experts, return_counts=True)
  counts.reshape(-1)[keys] += times


def mutual_information(counts: np.ndarray) -> tuple[float, float]:
  """Returns the mutual information of rows and columns, and what chance alone would show, in bits.

  Counts of a finite sample show some information where there is none, about (rows - 1) (columns - 1) / (2 N ln 2) for
  N observations, rows and columns without any left out (Miller 1955).

  Args:
    counts: `[rows, columns]`.
  """
  counts = np.asarray(counts, np.float64)
  total = counts.sum()
  if not total:
    return 0.0, 0.0
  rows, columns = counts.sum(axis=1), counts.sum(axis=0)
  seen = counts > 0
  expected = np.outer(rows, columns) / total
  bits = np.sum(counts[seen] * np.log2(counts[seen] / expected[seen])) / total
  degrees = (np.count_nonzero(rows) - 1) * (np.count_nonzero(columns) - 1)
  return float(max(bits, 0.0)), float(degrees / (2 * total * math.log(2)))


def favourites(tokens: np.ndarray, kept: int = KEPT_TOKENS) -> list[list[tuple[int, int, int, float]]]:
  """Returns for each expert the tokens it takes more of than its share, those that tell most about it first.

  The order is by count * log2(lift), the bits that these choices add to the mutual information of token and expert;
  lift is the share of the token's occurrences that went to the expert over the expert's share of all tokens. So neither
  rare tokens win, which a few choices settle, nor frequent ones, which every expert has many of.

  Args:
    tokens: int `[vocab, experts]`.
    kept: how many at most.

  Returns:
    By expert `(token, choices of this expert, occurrences, bits)`.
  """
  occurrences, loads = tokens.sum(axis=1), tokens.sum(axis=0)
  total = max(int(occurrences.sum()), 1)
  found = []
  for expert in range(tokens.shape[1]):
    candidates = np.flatnonzero(tokens[:, expert] >= _MIN_COUNT)
    taken = tokens[candidates, expert]
    lift = taken * total / (occurrences[candidates].astype(np.float64) * max(int(loads[expert]), 1))
    bits = taken * np.log2(lift)
    order = [i for i in np.argsort(-bits, kind='stable')[:kept] if bits[i] > 0]
    found.append([(int(candidates[i]), int(taken[i]), int(occurrences[candidates[i]]), float(bits[i])) for i in order])
  return found


def readable_pieces(vocabulary: Any) -> Callable[[int], str]:
  """Returns the function from an id to a string that a person can read; spaces are shown as `␣`.

  Args:
    vocabulary: SeqIO's, of bytes (printable ones as they are, others as 0xE3) or pieces, or of a user's own class.
  """
  if data.describe_vocabulary(vocabulary)['name'] in ('bytes', 'byt5', 'byt5_huggingface'):
    special = {0: '<pad>', 1: '</s>', 2: '<unk>'}
    special |= {token: f'<extra_id_{i}>' for i, token in enumerate(data.sentinel_ids(vocabulary))}

    def piece(token):
      byte = token - 3
      if token in special or not 0 <= byte < 256:
        return special.get(token, f'<{token}>')
      return {10: '\\n', 9: '\\t', 13: '\\r', 32: '␣'}.get(byte, chr(byte) if 33 <= byte < 127 else f'0x{byte:02X}')

    return piece
  if tokenizer := getattr(vocabulary, 'tokenizer', None):
    known = tokenizer.GetPieceSize()
    return lambda token: tokenizer.IdToPiece(token).replace('▁', '␣') if token < known else f'<{token}>'
  return lambda token: vocabulary.decode([token]).replace(' ', '␣') or f'<{token}>'


def describe_layer(counts: LayerCounts, piece: Callable[[int], str], stack: str) -> dict[str, Any]:
  """Returns what the file says of a layer, plain JSON.

  Args:
    counts: of its router.
    piece: from an id to a string.
    stack: 'encoder' or 'decoder'; in the decoder id 0 is the start of a target.
  """
  name = lambda token: '<start>' if token == 0 and stack == 'decoder' else piece(token)  # noqa: E731
  bits, by_chance = mutual_information(counts.tokens)
  layer = {
    'expert_tokens': counts.tokens.sum(axis=0).tolist(),
    'token_bits': bits,
    'token_bits_by_chance': by_chance,
    'favourites': [
      [{'token': t, 'piece': name(t), 'count': n, 'of': of, 'bits': round(b, 1)} for t, n, of, b in expert]
      for expert in favourites(counts.tokens)
    ],
  }
  if len(counts.groups):
    bits, by_chance = mutual_information(counts.groups)
    layer |= {'group_tokens': counts.groups.tolist(), 'group_bits': bits, 'group_bits_by_chance': by_chance}
  return layer


def measure_experts(model_dir: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
  """Returns what the experts of a run's checkpoint take on the held-out batches of its task, plain JSON.

  Args:
    model_dir: of the run.
    step: which checkpoint; None is the newest.

  Raises:
    ConfigError: there is no checkpoint, its model has no experts, or its task or vocabulary cannot be found.
  """
  store = open_store(model_dir)
  step = latest_step(store) if step is None else step
  record = store.read_config(step)
  if not (record.get('model') or {}).get('moe'):
    raise ConfigError(f'the model of {os.fspath(model_dir)} has no experts; choose a run of a Switch Transformer.')
  if not record.get('run'):
    raise ConfigError(f'config.json of {store.path(step)} does not record its run, so its held-out data is not known.')
  config = DataConfig.from_json(record['run']['data'])
  vocabulary = data.vocabulary_of(config)
  recorded = (record.get('vocabulary') or {}).get('digest')
  if recorded not in (None, data.describe_vocabulary(vocabulary)['digest']):
    raise ConfigError(
      f'{config.mixture_or_task_name} has another vocabulary now than the checkpoint {store.path(step)} was trained '
      'with; put the original in its place.'
    )
  model = load_model(store, step, MeshConfig())
  check_batch_size(config.batch_size, model.layout, 'DataConfig')
  held_out = data.open_evaluation(
    config,
    model.layout.batch_sharding(),
    record['run']['eval_steps'],
    model.config.vocab_size,
    model.config.is_decoder_only,
  )
  groups = tuple(getattr(held_out, 'groups', ()))
  counts = count_choices(
    make_first_choices(model.config, model.layout),
    model.params,
    held_out,
    vocab_size=max(model.config.vocab_size, vocabulary.vocab_size),
    num_experts=model.config.moe.num_experts,
    num_groups=len(groups),
  )
  piece = readable_pieces(vocabulary)
  return {
    'step': step,
    'task': config.mixture_or_task_name,
    'split': config.eval_split,
    'batches': len(held_out),
    'router': model.config.moe.router,
    'groups': list(groups),
    'layers': {layer: describe_layer(count, piece, layer.partition('_')[0]) for layer, count in counts.items()},
  }


def write_experts(model_dir: str | os.PathLike[str], step: int | None = None) -> epath.Path:
  """Measures what the experts take and writes `MODEL_DIR/eval/<task>/experts_<step>.json`; returns its path.

  Raises:
    ConfigError: as `measure_experts`, or the file cannot be written.
  """
  measured = measure_experts(model_dir, step)
  path = ModelDir(model_dir).experts(measured['task'], measured['step'])
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(measured, ensure_ascii=False, allow_nan=False) + '\n')
  except OSError as error:
    raise ConfigError(f'{path} cannot be written ({error}); see to the rights of the folder.') from error
  return path
