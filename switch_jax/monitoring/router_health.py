"""Warnings about routers, with the layer's name and a remedy: experts without tokens, collapse, drops, large logits."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from switch_jax.config import MoeConfig
from switch_jax.monitoring.summary import layer_key

# A warning about a layer that stays as it is comes again after so many windows.
_REPEAT_AFTER = 10


class RouterHealth:
  """Adds up what the routers do over windows of steps, and judges each window.

  Args:
    moe: the Switch layers, for thresholds and remedies.
    layers: their names, in the order of the arrays that `add` gets.
    window: steps in a window.
  """

  def __init__(self, moe: MoeConfig, layers: Sequence[str], window: int):
    self._moe, self._layers, self._window = moe, tuple(layers), window
    self._sums: dict[str, np.ndarray] = {}
    self._steps = 0
    self._lowest_drops = np.full(len(layers), np.inf)
    self._warned: dict[tuple[str, str], int] = {}
    self._windows = 0

  def add(self, step: int, routers: Mapping[str, np.ndarray]) -> list[str]:
    """Takes the numbers of a step.

    Args:
      step: the step.
      routers: `expert_tokens` `[layers, experts]`, `fraction_dropped` and `router_z_loss` `[layers]`.

    Returns:
      The warnings at the end of a window, otherwise none.
    """
    for name, value in routers.items():
      self._sums[name] = self._sums.get(name, 0.0) + np.asarray(value, np.float64)
    self._steps += 1
    if self._steps < self._window:
      return []
    found = self._judge(f'in steps {step - self._steps + 1:,} to {step:,}')
    self._sums, self._steps = {}, 0
    self._windows += 1
    news = []
    for key in sorted(found, key=lambda key: (layer_key(key[0]), key[1])):
      if self._windows - self._warned.get(key, -_REPEAT_AFTER) >= _REPEAT_AFTER:
        self._warned[key] = self._windows
        news.append(f'warning: {key[0]}: {found[key]}')
    for key in set(self._warned) - set(found):
      del self._warned[key]
    return news

  def _judge(self, when: str) -> dict[tuple[str, str], str]:
    """Returns what is wrong in this window, by layer and kind."""
    moe, found = self._moe, {}
    tokens = self._sums['expert_tokens']
    experts = tokens.shape[1]
    drops = self._sums['fraction_dropped'] / self._steps
    z_loss = self._sums['router_z_loss'] / self._steps
    choices = moe.num_selected_experts if moe.router == 'topk' else 1
    crowded = 0.5 + 0.5 * choices / experts  # halfway between even shares and all tokens for as many as a token has
    balance = f'AUX_LOSS_FACTOR (now {moe.aux_loss_factor:g})'
    if moe.bias_update_rate is not None:
      balance = f'config.MoeConfig.bias_update_rate (now {moe.bias_update_rate:g})'
    for i, layer in enumerate(self._layers):
      total = tokens[i].sum()
      if not total:
        continue
      unused = np.flatnonzero(tokens[i] == 0)
      if unused.size:
        named = ', '.join(map(str, unused[:8])) + (', ...' if unused.size > 8 else '')
        found[layer, 'unused'] = (
          f'{unused.size} of {experts} experts got no token {when} ({named}) and learn nothing. Raise {balance} or '
          f'config.MoeConfig.jitter_noise (now {moe.jitter_noise:g}), or use fewer experts.'
        )
      largest = tokens[i].argsort()[-choices:]
      if experts > choices and (share := tokens[i, largest].sum() / total) > crowded:
        named = 'expert ' if choices == 1 else f'{choices} experts together, '
        named += ', '.join(map(str, sorted(largest))) + ('' if choices == 1 else ',')
        found[layer, 'collapse'] = (
          f'{named} got {share:.0%} of all tokens {when}; the load has collapsed. Raise {balance} or lower '
          'LEARNING_RATE.'
        )
      if drops[i] > max(3 * self._lowest_drops[i], 0.1):
        found[layer, 'drops'] = (
          f'{drops[i]:.0%} of the tokens were dropped {when}, after {self._lowest_drops[i]:.1%} at best. Raise '
          f'config.MoeConfig.train_capacity_factor (now {moe.train_capacity_factor}) or {balance}.'
        )
      # Logits that are all alike have the z-loss ln(experts) ** 2.
      if z_loss[i] > 10 * max(math.log(experts), 1.0) ** 2:
        found[layer, 'logits'] = (
          f'the router z-loss is {z_loss[i]:.0f} {when}: logits are about {math.sqrt(z_loss[i]):.0f} and make '
          f'the softmax hard. Set config.MoeConfig.router_z_loss_factor=0.001 (now '
          f'{moe.router_z_loss_factor:g}) or lower LEARNING_RATE.'
        )
    self._lowest_drops = np.minimum(self._lowest_drops, drops)
    return found


def heat_map(expert_tokens: np.ndarray, cell: int = 12) -> np.ndarray:
  """Draws the load of every expert as a picture, uint8 `[layers * cell, experts * cell, 3]`.

  White is no token, orange an even share, black three even shares or more.

  Args:
    expert_tokens: `[layers, experts]`.
    cell: pixels of an expert's square.
  """
  loads = np.asarray(expert_tokens, np.float64)
  share = loads / np.maximum(loads.mean(axis=1, keepdims=True), 1e-9)
  stops = np.array([0.0, 1.0, 2.0, 3.0])
  colors = np.array([[255, 255, 255], [253, 174, 97], [165, 0, 38], [0, 0, 0]])
  pixels = np.stack([np.interp(share, stops, colors[:, channel]) for channel in range(3)], axis=-1)
  return np.kron(pixels, np.ones((cell, cell, 1))).round().astype(np.uint8)
