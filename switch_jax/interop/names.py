"""The table that ties T5X's names of parameters, used throughout, to Hugging Face's; and what has no name there."""

import dataclasses
import re
from collections.abc import Iterator

from switch_jax.config import ConfigError, ModelConfig


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


TABLE = (
  Rename('token_embedder/embedding', 'shared.weight', False),
  *_stack('encoder'),
  *_stack('decoder'),
  Rename('decoder/logits_dense/kernel', 'lm_head.weight'),
)


def _pattern(template: str) -> re.Pattern[str]:
  return re.compile(re.escape(template).replace(r'\{i\}', r'(?P<i>\d+)').replace(r'\{e\}', r'(?P<e>\d+)'))


_FROM_HUGGINGFACE = tuple((_pattern(row.huggingface), row) for row in TABLE)
_FROM_T5X = tuple((_pattern(row.t5x), row) for row in TABLE)


def from_huggingface(name: str) -> tuple[str, int | None, bool] | None:
  """Returns the T5X name, the expert (None where nothing is stacked), and whether to transpose; None if unknown.

  The dense feed-forward network of `T5ForConditionalGeneration` (`DenseReluDense`) is known too.
  """
  name = name.replace('.DenseReluDense.', '.mlp.')
  for pattern, row in _FROM_HUGGINGFACE:
    if match := pattern.fullmatch(name):
      found = match.groupdict()
      expert = int(found['e']) if 'e' in found else None
      return row.t5x.replace('{i}', found.get('i', '')), expert, row.transposed
  return None


def to_huggingface(name: str, expert: int | None = None) -> tuple[str, bool] | None:
  """Returns the Hugging Face name of a parameter and whether to transpose; None if there is no counterpart.

  Args:
    name: the T5X name.
    expert: which expert's part of a stacked array.
  """
  for pattern, row in _FROM_T5X:
    if match := pattern.fullmatch(name):
      layer = match.groupdict().get('i', '')
      return row.huggingface.replace('{i}', layer).replace('{e}', str(expert)), row.transposed
  return None


def require_names(config: ModelConfig) -> None:
  """Raises a `ConfigError` if a model has parameters for which T5X and Hugging Face have no names."""
  for stack in ('encoder', 'decoder'):
    if config.switch_attention_layers(stack):
      raise ConfigError(
        f'MoeConfig.{stack}_attention_layers is {getattr(config.moe, f"{stack}_attention_layers")!r}; T5X and Hugging '
        'Face have no names for experts in attention. Convert it to switch_jax.'
      )
  if config.is_decoder_only or config.positions == 'rotary':
    what = 'num_encoder_layers is 0' if config.is_decoder_only else f'positions is {config.positions!r}'
    raise ConfigError(
      f'ModelConfig.{what}; the T5 of T5X and Hugging Face has an encoder and relative positions. Convert it to '
      'switch_jax.'
    )
