"""From inputs to targets: greedy decoding, sampling and beam search, each one compiled loop.

A model without an encoder has the inputs at the beginning of the rows that it goes on with. A loop ends when every row
has ended. Rows lie on the mesh as in training. Padding (0) and ids beyond the vocabulary, which the padded embedding
has rows for, are never chosen; log probabilities are over all ids all the same, so that they are those of a forward
pass.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from switch_jax.config import DecodingConfig, ModelConfig
from switch_jax.model import Transformer
from switch_jax.model.cache import Cache, Memory
from switch_jax.model.decoding import decode_step, empty_cache, prefill, start_memory
from switch_jax.parallel import Layout
from switch_jax.parallel.compilation import compiled_by_all

# Below every log probability there is, and far enough from float32's end that adding to it is safe.
_IMPOSSIBLE = -1e9


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoded:
  """What was decoded, the best hypothesis first; all but beam search have one.

  Attributes:
    tokens: int32 `[batch, hypotheses, length]`, with EOS where it came in time, 0 after it.
    log_probability: float32 `[batch, hypotheses]`, the sum over these tokens, EOS included, under the model as it is
      (temperature 1, nothing left out). Minus infinity if there are fewer hypotheses.
    score: float32 `[batch, hypotheses]`: of beam search log_probability / ((5 + length) / 6) ** length_penalty with
      the length counted in tokens, EOS included; otherwise log_probability.
  """

  tokens: jax.Array
  log_probability: jax.Array
  score: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ids:
  """What a decoder must know of the vocabulary: the number of ids that have a meaning, and the end of a sequence."""

  size: int
  eos: int


def length_penalty(length: jax.Array | int, alpha: float) -> jax.Array:
  """Returns ((5 + length) / 6) ** alpha (Wu et al. 2016)."""
  return ((5.0 + length) / 6.0) ** alpha


def chosen_from(logits: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
  """Leaves the tokens that may be drawn; the others get minus infinity.

  Args:
    logits: `[..., vocab]`, divided by the temperature.
    top_k: keep the k largest (and those equal to the last of them).
    top_p: of those, keep the fewest, largest first, whose probability is at least p.
  """
  if top_k is not None and top_k < logits.shape[-1]:
    last = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < last, -jnp.inf, logits)
  if top_p is not None and top_p < 1:
    ordered = -jnp.sort(-logits, axis=-1)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    last = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < last, -jnp.inf, logits)
  return logits


def _draw(decoding: DecodingConfig, allowed: jax.Array, key: jax.Array, numbers: jax.Array, position: jax.Array):
  """Returns a token for each row, a function of (seed, number of the example, position)."""
  logits = chosen_from(allowed / decoding.temperature, decoding.top_k, decoding.top_p)

  def noise(number):
    own = jax.random.fold_in(jax.random.fold_in(key, number), position)
    return jax.random.gumbel(own, logits.shape[-1:], jnp.float32)

  return jnp.argmax(logits + jax.vmap(noise)(numbers), axis=-1)


Step = Callable[[jax.Array, Cache, jax.Array], tuple[jax.Array, Cache]]


def _follow(
  step: Step,
  choose: Callable[[jax.Array, jax.Array], jax.Array],
  cache: Cache,
  newest: jax.Array,
  present: jax.Array,
  length: int,
  ids: Ids,
) -> Decoded:
  """Decodes one hypothesis a row; `choose` maps (logits with what may not be chosen masked, position) to tokens."""
  rows = present.shape[0]

  def body(carry):
    position, newest, ended, tokens, total, cache = carry
    logits, cache = step(newest, cache, position)
    newest = choose(_allowed(logits, ids), position).astype(jnp.int32)
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), newest[:, None], axis=-1)[:, 0]
    newest = jnp.where(ended, 0, newest)
    total = total + jnp.where(ended, 0.0, log_probability)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, newest[:, None], position, axis=1)
    return position + 1, newest, ended | (newest == ids.eos), tokens, total, cache

  start = (jnp.int32(0), newest, ~present, jnp.zeros((rows, length), jnp.int32))
  carry = (*start, jnp.zeros(rows, jnp.float32), cache)
  carry = jax.lax.while_loop(lambda carry: (carry[0] < length) & ~jnp.all(carry[2]), body, carry)
  tokens, total = carry[3][:, None], carry[4][:, None]
  return Decoded(tokens, total, total)


def _allowed(logits: jax.Array, ids: Ids) -> jax.Array:
  """Masks padding and the ids that the padded embedding has in addition."""
  index = jnp.arange(logits.shape[-1])
  return jnp.where((index > 0) & (index < ids.size), logits, -jnp.inf)


def _take_beams(tree: Any, index: jax.Array, axis: int = 0) -> Any:
  """Selects hypotheses `[batch, k]` of arrays whose `axis` is batch * beams."""
  batch, beams = index.shape

  def take(x):
    shape = x.shape
    x = x.reshape(*shape[:axis], batch, shape[axis] // batch, *shape[axis + 1 :])
    where = index.reshape((1,) * axis + index.shape + (1,) * (len(shape) - axis - 1))
    x = jnp.take_along_axis(x, where, axis=axis + 1)
    return x.reshape(*shape[:axis], batch * beams, *shape[axis + 1 :])

  return jax.tree.map(take, tree)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Beams:
  """The state of a beam search: hypotheses that go on, and those that have ended, best first."""

  position: jax.Array
  live_tokens: jax.Array  # [batch, beams, length]
  live_log_probability: jax.Array  # [batch, beams]
  ended_tokens: jax.Array
  ended_log_probability: jax.Array
  ended_score: jax.Array
  cache: Cache  # rows are batch * beams


def _beam_search(
  step: Step,
  cache: Cache,
  cache_axis: int,
  first: jax.Array,
  present: jax.Array,
  length: int,
  ids: Ids,
  decoding: DecodingConfig,
) -> Decoded:
  """Keeps the `num_beams` best hypotheses that go on and the `num_beams` best that have ended.

  An example is done when no hypothesis that goes on can overtake its worst ended one, however long it gets. Those that
  have ended come before those that were cut off.
  """
  beams, alpha, batch = decoding.num_beams, decoding.length_penalty, present.shape[0]
  select = functools.partial(jnp.take_along_axis, axis=1)
  select_rows = lambda x, index: jnp.take_along_axis(x, index[..., None], axis=1)  # noqa: E731

  def more(state: _Beams):
    reachable = state.live_log_probability[:, 0] / length_penalty(length, alpha)
    done = (reachable <= state.ended_score[:, -1]) | ~present
    return (state.position < length) & ~jnp.all(done)

  def body(state: _Beams):
    position = state.position
    last = jax.lax.dynamic_index_in_dim(state.live_tokens, jnp.maximum(position - 1, 0), axis=2, keepdims=False)
    newest = jnp.where(position == 0, first, last.reshape(-1))
    logits, cache = step(newest, state.cache, position)
    index = jnp.arange(logits.shape[-1])
    allowed = jnp.where((index > 0) & (index < ids.size), jax.nn.log_softmax(logits), _IMPOSSIBLE)
    total = jnp.maximum(state.live_log_probability[..., None] + allowed.reshape(batch, beams, -1), 2 * _IMPOSSIBLE)
    # Of twice as many, at least half go on.
    best, where = jax.lax.top_k(total.reshape(batch, -1), min(2 * beams, total.shape[1] * total.shape[2]))
    parent, token = where // total.shape[2], (where % total.shape[2]).astype(jnp.int32)
    tokens = select_rows(state.live_tokens, parent)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], position, axis=2)
    ends = (token == ids.eos) & (best > _IMPOSSIBLE / 2)

    live, kept = jax.lax.top_k(jnp.where(ends, 2 * _IMPOSSIBLE, best), beams)
    ended_log_probability = jnp.concatenate(
      [state.ended_log_probability, jnp.where(ends, best, 2 * _IMPOSSIBLE)], axis=1
    )
    score = jnp.where(ends, best / length_penalty(position + 1, alpha), 2 * _IMPOSSIBLE)
    score, better = jax.lax.top_k(jnp.concatenate([state.ended_score, score], axis=1), beams)
    return _Beams(
      position=position + 1,
      live_tokens=select_rows(tokens, kept),
      live_log_probability=live,
      ended_tokens=select_rows(jnp.concatenate([state.ended_tokens, tokens], axis=1), better),
      ended_log_probability=select(ended_log_probability, better),
      ended_score=score,
      cache=_take_beams(cache, select(parent, kept), cache_axis),
    )

  nothing = jnp.full((batch, beams), 2 * _IMPOSSIBLE, jnp.float32)
  no_tokens = jnp.zeros((batch, beams, length), jnp.int32)
  start = _Beams(
    position=jnp.int32(0),
    live_tokens=no_tokens,
    live_log_probability=nothing.at[:, 0].set(0.0),
    ended_tokens=no_tokens,
    ended_log_probability=nothing,
    ended_score=nothing,
    cache=cache,
  )
  state = jax.lax.while_loop(more, body, start)
  # Those cut off go last, in their own order.
  cut = state.live_log_probability / length_penalty(state.position, alpha)
  order = jnp.concatenate([state.ended_score, jnp.maximum(cut + _IMPOSSIBLE, 2 * _IMPOSSIBLE)], axis=1)
  _, index = jax.lax.top_k(order, beams)
  log_probability = select(jnp.concatenate([state.ended_log_probability, state.live_log_probability], axis=1), index)
  score = select(jnp.concatenate([state.ended_score, cut], axis=1), index)
  is_there = log_probability > _IMPOSSIBLE / 2
  tokens = select_rows(jnp.concatenate([state.ended_tokens, state.live_tokens], axis=1), index)
  return Decoded(
    tokens=jnp.where(is_there[..., None] & present[:, None, None], tokens, 0),
    log_probability=jnp.where(is_there, log_probability, -jnp.inf),
    score=jnp.where(is_there, score, -jnp.inf),
  )


def padded_before(tokens: jax.Array) -> jax.Array:
  """Returns tokens `[batch, length]` with the zeros that follow those of a row put before them."""
  places = jnp.arange(tokens.shape[1]) + jnp.sum(tokens > 0, axis=1, keepdims=True)
  return jnp.take_along_axis(tokens, places % tokens.shape[1], axis=1)


def _read_inputs(config: ModelConfig, layout: Layout, params: Any, tokens: jax.Array, beams: int, length: int):
  """Reads the inputs `[batch, n]` of a model without an encoder, which are the beginning of its rows.

  Rows end together, so that the newest position is the same of all.

  Returns:
    A cache for n positions and `length` that follow, in which all are but the newest one; the token there, of each
    hypothesis; and the positions of their start symbols.
  """
  batch, width = tokens.shape
  # Padding is 0 and so is the start symbol, which comes after it.
  rows, starts = jnp.pad(padded_before(tokens), ((0, 0), (1, 0))), width - jnp.sum(tokens > 0, axis=1)
  # In a prefix each token sees the newest one, which the first step computes again.
  seen = rows if config.prefix_lm else rows[:, :-1]
  cache = prefill(config, layout, params, seen, empty_cache(config, layout, batch, width + length), starts)
  repeat = lambda x, axis=0: jnp.repeat(x, beams, axis=axis)  # noqa: E731
  cache = jax.tree.map(lambda x: repeat(x, int(config.scan_layers)), cache)
  return cache, repeat(rows[:, -1]), repeat(starts)


def decode(
  config: ModelConfig,
  layout: Layout,
  decoding: DecodingConfig,
  ids: Ids,
  length: int,
  params: Any,
  inputs: jax.Array,
  present: jax.Array,
  numbers: jax.Array,
) -> Decoded:
  """Decodes targets for a batch of inputs; to be jitted, see `make_decode`.

  Args:
    config: what is computed; its evaluation capacity holds in the encoder, the decoder never drops.
    layout: where.
    decoding: how targets are chosen.
    ids: of the vocabulary.
    length: tokens decoded at most, EOS included.
    params: nested dict of arrays.
    inputs: int32 `[batch, inputs length]`, one example a row, 0 for padding after it; nothing else is the empty text.
    present: bool `[batch]`, False for rows that only fill the batch; nothing is decoded for them.
    numbers: int32 `[batch]`: the number of each example, from which its sample is drawn, whatever batch it is in.
  """
  beams = decoding.num_beams if decoding.method == 'beam' else 1
  memory: Memory | None = None
  if config.is_decoder_only:
    first = inputs.shape[1]
    cache, newest, starts = _read_inputs(config, layout, params, inputs, beams, length)
  else:
    encoded, _ = Transformer(config, layout).apply({'params': params}, inputs, method='encode')
    memory = start_memory(config, layout, params, encoded, inputs)
    newest, first, starts = jnp.zeros(inputs.shape[0] * beams, jnp.int32), 0, None
    cache = empty_cache(config, layout, *newest.shape, length)

  def step(tokens, cache, position):
    return decode_step(config, layout, params, tokens, cache, memory, first + position, starts)

  if decoding.method == 'beam':
    return _beam_search(step, cache, int(config.scan_layers), newest, present, length, ids, decoding)
  if decoding.method == 'greedy':
    return _follow(step, lambda logits, position: jnp.argmax(logits, axis=-1), cache, newest, present, length, ids)
  key = jax.random.key(decoding.seed)
  choose = lambda logits, position: _draw(decoding, logits, key, numbers, position)  # noqa: E731
  return _follow(step, choose, cache, newest, present, length, ids)


@functools.lru_cache(maxsize=16)
def make_decode(
  config: ModelConfig, layout: Layout, decoding: DecodingConfig, ids: Ids, length: int
) -> Callable[[Any, jax.Array, jax.Array, jax.Array], Decoded]:
  """Returns the jitted `(params, inputs, present, numbers) -> Decoded`; the result is on every device."""
  function = functools.partial(decode, config, layout, decoding, ids, length)
  return compiled_by_all(jax.jit(function, out_shardings=layout.replicated()), 'decoding')
