"""The tables that tie T5X's names of parameters, used throughout, to Hugging Face's; and what has no name there."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Literal, NoReturn

from switch_jax.config import ConfigError, ModelConfig, MoeConfig
from switch_jax.folders.checked_json import shown

# Of the models there: with an encoder, or without one.
Family = Literal['t5', 'llama']

# Hugging Face's `gelu` is the exact one; the model here has the tanh approximation that T5 uses.
ACTIVATIONS = {
  'relu': 'relu',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu_fast': 'gelu',
  'silu': 'silu',
  'swish': 'silu',
  'linear': 'linear',
}
TO_HUGGINGFACE = {'relu': 'relu', 'gelu': 'gelu_new', 'silu': 'silu', 'linear': 'linear'}


@dataclasses.dataclass(frozen=True)
class Rename:
  """One row of the table.

  Attributes:
    t5x: the T5X name; `{i}` stands for the layer.
    huggingface: the name in a `state_dict`; `{e}` stands for the expert, whose arrays T5X stacks on the first axis.
    transposed: whether the two matrices are each other's transposes.
  """

  t5x: str
  huggingface: str
  transposed: bool = True


def _attention(t5x: str, huggingface: str) -> Iterator[Rename]:
  for kernel, letter in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'o')):
    yield Rename(f'{t5x}/{kernel}/kernel', f'{huggingface}.{letter}.weight')


def _stack(stack: str) -> Iterator[Rename]:
  """Yields the rows of one stack. Hugging Face numbers the parts of a block, T5X names them."""
  layer, block = f'{stack}/layers_{{i}}', f'{stack}.block.{{i}}.layer'
  table = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  yield Rename(f'{stack}/relpos_bias/rel_embedding', table)
  if stack == 'encoder':
    parts = {'attention': ('attention', f'{block}.0.SelfAttention')}
  else:
    parts = {
      'self_attention': ('self_attention', f'{block}.0.SelfAttention'),
      'encoder_decoder_attention': ('cross_attention', f'{block}.1.EncDecAttention'),
    }
  for number, (t5x, (norm, huggingface)) in enumerate(parts.items()):
    yield from _attention(f'{layer}/{t5x}', huggingface)
    yield Rename(f'{layer}/pre_{norm}_layer_norm/scale', f'{block}.{number}.layer_norm.weight', False)
  last = len(parts)
  yield Rename(f'{layer}/pre_mlp_layer_norm/scale', f'{block}.{last}.layer_norm.weight', False)
  for kernel in ('wi', 'wi_0', 'wi_1', 'wo'):
    yield Rename(f'{layer}/mlp/{kernel}/kernel', f'{block}.{last}.mlp.{kernel}.weight')
    yield Rename(f'{layer}/mlp/expert/{kernel}/kernel', f'{block}.{last}.mlp.experts.expert_{{e}}.{kernel}.weight')
  yield Rename(f'{layer}/mlp/router/router_weights/w/kernel', f'{block}.{last}.mlp.router.classifier.weight')
  yield Rename(f'{stack}/{stack}_norm/scale', f'{stack}.final_layer_norm.weight', False)


def _llama() -> Iterator[Rename]:
  """Yields the rows of Llama and, with experts, Mixtral."""
  layer, block = 'decoder/layers_{i}', 'model.layers.{i}'
  yield Rename('token_embedder/embedding', 'model.embed_tokens.weight', False)
  for kernel, letter in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'o')):
    yield Rename(f'{layer}/self_attention/{kernel}/kernel', f'{block}.self_attn.{letter}_proj.weight')
  yield Rename(f'{layer}/pre_self_attention_layer_norm/scale', f'{block}.input_layernorm.weight', False)
  yield Rename(f'{layer}/pre_mlp_layer_norm/scale', f'{block}.post_attention_layernorm.weight', False)
  for kernel, dense, expert in (('wi_0', 'gate', 'w1'), ('wi_1', 'up', 'w3'), ('wo', 'down', 'w2')):
    yield Rename(f'{layer}/mlp/{kernel}/kernel', f'{block}.mlp.{dense}_proj.weight')
    yield Rename(f'{layer}/mlp/expert/{kernel}/kernel', f'{block}.block_sparse_moe.experts.{{e}}.{expert}.weight')
  yield Rename(f'{layer}/mlp/router/router_weights/w/kernel', f'{block}.block_sparse_moe.gate.weight')
  yield Rename('decoder/decoder_norm/scale', 'model.norm.weight', False)
  yield Rename('decoder/logits_dense/kernel', 'lm_head.weight')


_TABLES: dict[Family, tuple[Rename, ...]] = {
  't5': (
    Rename('token_embedder/embedding', 'shared.weight', False),
    *_stack('encoder'),
    *_stack('decoder'),
    Rename('decoder/logits_dense/kernel', 'lm_head.weight'),
  ),
  'llama': tuple(_llama()),
}


def _pattern(template: str) -> re.Pattern[str]:
  return re.compile(re.escape(template).replace(r'\{i\}', r'(?P<i>\d+)').replace(r'\{e\}', r'(?P<e>\d+)'))


_FROM_HUGGINGFACE = {f: tuple((_pattern(row.huggingface), row) for row in rows) for f, rows in _TABLES.items()}
_FROM_T5X = {f: tuple((_pattern(row.t5x), row) for row in rows) for f, rows in _TABLES.items()}


def from_huggingface(name: str, family: Family = 't5') -> tuple[str, int | None, bool] | None:
  """Returns the T5X name, the expert (None where nothing is stacked), and whether to transpose; None if unknown.

  The dense feed-forward network of `T5ForConditionalGeneration` (`DenseReluDense`) is known too.
  """
  name = name.replace('.DenseReluDense.', '.mlp.')
  for pattern, row in _FROM_HUGGINGFACE[family]:
    if match := pattern.fullmatch(name):
      found = match.groupdict()
      expert = int(found['e']) if 'e' in found else None
      return row.t5x.replace('{i}', found.get('i', '')), expert, row.transposed
  return None


def to_huggingface(name: str, expert: int | None = None, family: Family = 't5') -> tuple[str, bool] | None:
  """Returns the Hugging Face name of a parameter and whether to transpose; None if there is no counterpart.

  Args:
    name: the T5X name.
    expert: which expert's part of a stacked array.
    family: of the model there.
  """
  for pattern, row in _FROM_T5X[family]:
    if match := pattern.fullmatch(name):
      layer = match.groupdict().get('i', '')
      return row.huggingface.replace('{i}', layer).replace('{e}', str(expert)), row.transposed
  return None


def activations(act_fn: str, gated: bool) -> tuple[tuple[str, ...], str]:
  """Returns `ModelConfig.mlp_activations` for Hugging Face's name of an activation.

  And what to say unless the user overrides them, where they are only near it; else the empty string.
  """
  name = act_fn.removeprefix('gated-')
  found = (ACTIVATIONS.get(name, 'gelu'), *(['linear'] if gated else []))
  if name in ACTIVATIONS:
    return found, ''
  return found, (
    f'the activation of config.json is {shown(act_fn)}; known are {", ".join(ACTIVATIONS)}. The override '
    f'mlp_activations={found!r} would use the tanh approximation, which differs from the exact gelu by up to 5e-4.'
  )


def refuse(reason: str, others: str = 't5x or switch_jax') -> NoReturn:
  """Raises the error that Hugging Face has no class for a model; `others` are formats that hold it."""
  raise ConfigError(f'Hugging Face cannot represent this model. {reason}. Convert it to {others}.')


# Of `MoeConfig`, what neither T5X nor Hugging Face's encoder-decoders compute.
_ONLY_HERE = {
  'bias_update_rate': 'biases of experts',
  'num_shared_experts': 'shared experts',
  'router_scores': 'scores but the softmax',
  'gate_scale': 'factor of the gates',
}


def require_names(config: ModelConfig) -> None:
  """Raises a `ConfigError` if a model has parameters or scores for which T5X and Hugging Face have no names."""
  moe = None if config.is_decoder_only else config.moe  # what Mixtral computes `huggingface_llama` knows
  for name, what in _ONLY_HERE.items():
    if moe and (value := getattr(moe, name)) != getattr(MoeConfig, name):
      raise ConfigError(
        f"MoeConfig.{name} is {value!r}; T5X and Hugging Face's Switch Transformers have no {what}. Convert it to "
        'switch_jax.'
      )
  for stack in ('encoder', 'decoder'):
    if config.switch_attention_layers(stack):
      raise ConfigError(
        f'MoeConfig.{stack}_attention_layers is {getattr(config.moe, f"{stack}_attention_layers")!r}; T5X and Hugging '
        'Face have no names for experts in attention. Convert it to switch_jax.'
      )


def require_encoder(config: ModelConfig) -> None:
  """Raises a `ConfigError` if a model is no T5: without an encoder, or with rotary positions."""
  if config.is_decoder_only or config.positions == 'rotary':
    what = 'num_encoder_layers is 0' if config.is_decoder_only else f'positions is {config.positions!r}'
    raise ConfigError(
      f'ModelConfig.{what}; the T5 of T5X and Hugging Face has an encoder and relative positions. Convert it to '
      'switch_jax.'
    )
