"""Routing decisions: which token goes to which expert, and which slot it gets. Pure functions, no parameters.

Axes: g groups, s tokens of a group, k choices of a token, e experts. Where each choice stands in its expert's queue is
told by `kernels.decisions`; functions that need it are given the form.
"""

import dataclasses

import jax
import jax.numpy as jnp

from switch_jax.config import MoeConfig
from switch_jax.kernels import SORTED, Decisions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
  """Where tokens go.

  Attributes:
    expert: int32 `[g, s, k]`, the experts of each token.
    slot: int32 `[g, s, k]`, the token's position among the slots of that expert and group; -1 where it got none.
    gate: float32 `[g, s, k]`, the factor of that expert's output; 0 where the token got no slot.
  """

  expert: jax.Array
  slot: jax.Array
  gate: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoutingStatistics:
  """Sums over the tokens of each group that count (by default the real ones); losses and metrics are made of them.

  Attributes:
    tokens: float32 `[g]`, tokens counted.
    expert_tokens: float32 `[g, e]`, tokens that `top1` and `topk` send to that expert, before dropping; of the other
      routers those whose first choice it is.
    balanced_tokens: float32 `[g, e]`, T f_i of equation 5: `expert_tokens`; of `topk` and No-Token-Left-Behind the mean
      over all choices of a token, as in OLMoE's code and the paper's.
    expert_probability: float32 `[g, e]`, sum of the router's probabilities (T P_i, equation 6); it has a gradient.
    dropped: float32 `[g]`, tokens that no expert took; of `topk` the choices that no expert took, divided by k.
    entropy: float32 `[g]`, sum of the entropies of the router's distributions, in nats.
    squared_log_partition: float32 `[g]`, sum of logsumexp(logits) ** 2; it has a gradient.
  """

  tokens: jax.Array
  expert_tokens: jax.Array
  balanced_tokens: jax.Array
  expert_probability: jax.Array
  dropped: jax.Array
  entropy: jax.Array
  squared_log_partition: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
  """What a router makes of its logits.

  Attributes:
    values: float32 `[g, s, e]`, what gates are made of: the softmax, or the sigmoid of each logit.
    probabilities: float32 `[g, s, e]`, their shares of each token's sum; of the softmax the same.
    entropy: float32 `[g, s]` of the probabilities, in nats.
    log_partition: `[g, s]`, logsumexp of the logits.
  """

  values: jax.Array
  probabilities: jax.Array
  entropy: jax.Array
  log_partition: jax.Array


def scores_of(logits: jax.Array, config: MoeConfig) -> Scores:
  """Returns the scores of logits `[g, s, e]` in `router_dtype`, by `config.router_scores`."""
  log_partition = log_sum = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  log_scores = logits
  if config.router_scores == 'sigmoid':
    log_scores = jax.nn.log_sigmoid(logits)
    log_sum = jax.nn.logsumexp(log_scores, axis=-1, keepdims=True)
  probabilities = jnp.exp(log_scores - log_sum).astype(jnp.float32)
  values = jax.nn.sigmoid(logits).astype(jnp.float32) if config.router_scores == 'sigmoid' else probabilities
  # H = logsumexp(u) - sum p u needs no logarithm of a probability that may be zero.
  mean = jnp.einsum('gse,gse->gs', probabilities, log_scores.astype(jnp.float32))
  return Scores(values, probabilities, log_sum[..., 0].astype(jnp.float32) - mean, log_partition[..., 0])


def preference(logits: jax.Array, bias: jax.Array | None, config: MoeConfig) -> jax.Array:
  """Returns what the choice maximises, noise apart: the logits, or scores and biases (Wang et al. 2024).

  Args:
    logits: `[..., e]` in `router_dtype`.
    bias: float32 `[e]`; None without biases. No gradient comes back to it.
    config: gives the scores.
  """
  if bias is None:
    return logits
  score = jax.nn.sigmoid(logits) if config.router_scores == 'sigmoid' else jax.nn.softmax(logits, axis=-1)
  return jax.lax.stop_gradient(score.astype(jnp.float32) + bias)


def expert_capacity(config: MoeConfig, group_tokens: int, deterministic: bool) -> int | None:
  """Returns the slots of each expert for a group of `group_tokens` tokens; None drops nothing (equation 3).

  max(rounding(group_tokens * factor / num_experts), min_expert_capacity), at most `group_tokens`, with k times the
  tokens for `topk`; or the absolute `expert_capacity`, also at most `group_tokens`.
  """
  if config.expert_capacity is not None:
    return min(config.expert_capacity, group_tokens)
  factor = config.eval_capacity_factor if deterministic else config.train_capacity_factor
  if factor is None:
    return None
  choices = config.num_selected_experts if config.router == 'topk' else 1
  exact = choices * group_tokens * factor / config.num_experts
  rounded = round(exact) if config.capacity_rounding == 'round' else int(exact)
  return min(max(rounded, config.min_expert_capacity), group_tokens)


def first_come_slots(
  expert: jax.Array,
  num_experts: int,
  capacity: int | None,
  priority: jax.Array | None = None,
  decisions: Decisions = SORTED,
) -> jax.Array:
  """Returns the slot of every choice, -1 where the expert is full.

  All first choices come before any second choice; within a choice tokens come in their order, or by falling
  `priority`.

  Args:
    expert: int32 `[g, s, k]`; `num_experts` stands for "none".
    num_experts: e.
    capacity: slots of each expert and group; None for as many as needed.
    priority: float32 `[g, s]` or None.
    decisions: see `kernels.decisions`.
  """
  groups, tokens, choices = expert.shape
  by_choice = expert.swapaxes(1, 2)  # [g, k, s]
  if priority is not None:
    order = jnp.argsort(-priority, axis=-1, stable=True)[:, None, :]
    by_choice = jnp.take_along_axis(by_choice, order, axis=-1)
  slots, _ = decisions.positions(by_choice.reshape(groups, choices * tokens), num_experts)
  slots = slots.reshape(groups, choices, tokens)
  taken = by_choice < num_experts
  if capacity is not None:
    taken &= slots < capacity
  slots = jnp.where(taken, slots, -1)
  if priority is not None:
    slots = jnp.take_along_axis(slots, jnp.argsort(order, axis=-1), axis=-1)
  return slots.swapaxes(1, 2)


def route_top1(
  scores: jax.Array,
  chosen_by: jax.Array,
  takes_slot: jax.Array,
  config: MoeConfig,
  capacity: int | None,
  decisions: Decisions = SORTED,
) -> Routing:
  """The Switch router: one expert a token, its full-softmax probability as the gate (section 2.1).

  Args:
    scores: float32 `[g, s, e]`, the softmax of the router's logits, or their sigmoid (Llama 4).
    chosen_by: float32 `[g, s, e]`, what the choice maximises: `preference`, or logits with noise when sampling.
    takes_slot: bool `[g, s]`.
    config: gives the slot priority.
    capacity: slots of each expert and group; None drops nothing.
    decisions: see `kernels.decisions`.
  """
  best = jnp.argmax(chosen_by, axis=-1)[..., None].astype(jnp.int32)
  return _with_slots(best, decisions.pick(scores, best), takes_slot, config, capacity, decisions)


def route_topk(
  scores: jax.Array,
  chosen_by: jax.Array,
  takes_slot: jax.Array,
  config: MoeConfig,
  capacity: int | None,
  decisions: Decisions = SORTED,
) -> Routing:
  """The k best experts of a token, with its scores as gates, normalised or as they are.

  Mixtral (Jiang et al. 2024) normalises a softmax, OLMoE (Muennighoff et al. 2024) does not, DeepSeek-V3 (2024)
  normalises and scales sigmoids and chooses with biases. Arguments as for `route_top1`.
  """
  _, best = jax.lax.top_k(chosen_by, config.num_selected_experts)
  best = best.astype(jnp.int32)
  return _with_slots(best, decisions.pick(scores, best), takes_slot, config, capacity, decisions)


def _with_slots(best, gate, takes_slot, config, capacity, decisions):
  """Returns the routing of tokens that want all their `best` experts, given the scores of these."""
  priority = gate[..., 0] if config.slot_priority == 'probability' else None
  if config.router == 'topk':
    total = jnp.sum(gate, axis=-1, keepdims=True) + 1e-20 if config.normalize_gates else 1.0
    gate = gate / total * config.gate_scale
  wanted = jnp.where(takes_slot[..., None], best, config.num_experts)
  slot = first_come_slots(wanted, config.num_experts, capacity, priority, decisions)
  return Routing(best, slot, jnp.where(slot >= 0, gate, 0.0))


def route_top2(
  probabilities: jax.Array,
  takes_slot: jax.Array,
  config: MoeConfig,
  capacity: int | None,
  policy: str,
  uniform: jax.Array | None,
  decisions: Decisions = SORTED,
) -> Routing:
  """The top-2 router of Mixture-of-Experts, Table 1's baseline (Shazeer et al. 2017; Lepikhin et al. 2020).

  Args:
    probabilities: float32 `[g, s, e]`.
    takes_slot: bool `[g, s]`.
    config: gives normalisation, threshold and slot priority.
    capacity: slots of each expert and group, with no factor for the two choices; None drops nothing.
    policy: which second experts are used: `all`, `none`, `threshold` or `random`.
    uniform: float32 `[g, s]` in [0, 1), drawn for the policy `random`.
    decisions: see `kernels.decisions`.
  """
  _, best = jax.lax.top_k(probabilities, 2)
  best = best.astype(jnp.int32)
  gate = decisions.pick(probabilities, best)
  priority = gate[..., 0] if config.slot_priority == 'probability' else None
  if config.normalize_gates:
    gate = gate / (jnp.sum(gate, axis=-1, keepdims=True) + 1e-9)
  second = gate[..., 1]
  if policy == 'random':
    assert uniform is not None, 'the policy random needs noise'
    wants_second = uniform < second / config.second_threshold
  elif policy == 'threshold':
    wants_second = second > config.second_threshold
  else:
    wants_second = jnp.full_like(takes_slot, policy == 'all')
  wants = jnp.stack([takes_slot, takes_slot & wants_second], axis=-1)
  wanted = jnp.where(wants, best, config.num_experts)
  slot = first_come_slots(wanted, config.num_experts, capacity, priority, decisions)
  return Routing(best, slot, jnp.where(slot >= 0, gate, 0.0))


def route_no_token_left_behind(
  probabilities: jax.Array,
  takes_slot: jax.Array,
  config: MoeConfig,
  capacity: int | None,
  decisions: Decisions = SORTED,
) -> Routing:
  """Tokens that overflow try their second choice, then the third, and so on (appendix B).

  The gate is the softmax probability of the expert that took the token. Arguments as for `route_top1`.
  """
  _, ranked = jax.lax.top_k(probabilities, config.num_choices)
  ranked = ranked.astype(jnp.int32)
  expert, slot = ranked[..., 0], jnp.full(takes_slot.shape, -1, jnp.int32)
  used = jnp.zeros((probabilities.shape[0], config.num_experts), jnp.int32)
  for choice in range(config.num_choices):
    wanted = jnp.where(takes_slot & (slot < 0), ranked[..., choice], config.num_experts)
    position, counts = decisions.positions(wanted, config.num_experts)
    position += jnp.take_along_axis(used, jnp.minimum(wanted, config.num_experts - 1), axis=-1)
    taken = wanted < config.num_experts
    if capacity is not None:
      taken &= position < capacity
      counts = jnp.minimum(counts, capacity - used)
    expert, slot = jnp.where(taken, wanted, expert), jnp.where(taken, position, slot)
    used += counts
  expert, slot = expert[..., None], slot[..., None]
  return Routing(expert, slot, jnp.where(slot >= 0, decisions.pick(probabilities, expert), 0.0))


def route_expert_choice(probabilities: jax.Array, takes_slot: jax.Array, config: MoeConfig, capacity: int) -> Routing:
  """Every expert takes the `capacity` tokens to which the router gives it the highest probability (Zhou et al. 2022).

  A token may be taken by any number of experts, so k = e here. Arguments as for `route_top1`.
  """
  scores = jnp.where(takes_slot[..., None], probabilities, -1.0).swapaxes(1, 2)  # [g, e, s]
  value, token = jax.lax.top_k(scores, capacity)  # [g, e, capacity], in falling order
  rank = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), token.shape)
  slot = jnp.full(scores.shape, -1, jnp.int32)
  slot = jnp.put_along_axis(slot, token, jnp.where(value >= 0, rank, -1), axis=-1, inplace=False).swapaxes(1, 2)
  expert = jnp.broadcast_to(jnp.arange(config.num_experts, dtype=jnp.int32), slot.shape)
  return Routing(expert, slot, jnp.where(slot >= 0, probabilities, 0.0))


def route(
  logits: jax.Array,
  real: jax.Array,
  config: MoeConfig,
  capacity: int | None,
  *,
  deterministic: bool,
  bias: jax.Array | None = None,
  gumbel: jax.Array | None = None,
  uniform: jax.Array | None = None,
  decisions: Decisions = SORTED,
) -> tuple[Routing, RoutingStatistics]:
  """Routes the tokens of each group.

  Args:
    logits: float32 `[g, s, e]`, the router's output.
    real: bool `[g, s]`, False for padding.
    config: the router and its options.
    capacity: slots of each expert and group; None drops nothing.
    deterministic: evaluation: no exploration, the evaluation policy for second experts.
    bias: float32 `[e]`, the experts' biases (`bias_update_rate`), None without.
    gumbel: standard Gumbel noise `[g, s, e]` for the exploration `sample`.
    uniform: noise in [0, 1) `[g, s]` for the second policy `random`.
    decisions: see `kernels.decisions`.
  """
  # Selective precision (section 2.4): all of this is float32, unless Table 2's bfloat16 router is asked for.
  logits = logits.astype(config.router_dtype)
  counted = jnp.ones_like(real) if config.padding_takes_slots else real
  scores = scores_of(logits, config)
  probabilities = scores.probabilities
  chosen_by = preference(logits, bias, config)
  if config.router == 'top1':
    if gumbel is not None:
      chosen_by = logits / config.sample_temperature + gumbel
    routing = route_top1(scores.values, chosen_by, counted, config, capacity, decisions)
  elif config.router == 'topk':
    routing = route_topk(scores.values, chosen_by, counted, config, capacity, decisions)
  elif config.router == 'top2':
    policy = config.second_policy_eval if deterministic else config.second_policy_train
    routing = route_top2(probabilities, counted, config, capacity, policy, uniform, decisions)
  elif config.router == 'no_token_left_behind':
    routing = route_no_token_left_behind(probabilities, counted, config, capacity, decisions)
  else:
    assert capacity is not None, 'MoeConfig refuses experts that choose tokens without a capacity'
    routing = route_expert_choice(probabilities, counted, config, capacity)
  chosen = routing.expert if config.router in ('top1', 'topk') else jnp.argmax(logits, axis=-1)[..., None]
  sums = statistics(scores, chosen, routing.slot, counted, decisions)
  if config.router == 'no_token_left_behind':
    _, ranked = jax.lax.top_k(probabilities, config.num_choices)
    wanted = jnp.where(counted[..., None], ranked, config.num_experts).reshape(len(ranked), -1)
    _, choices = decisions.positions(wanted.astype(jnp.int32), config.num_experts)
    sums = dataclasses.replace(sums, balanced_tokens=choices.astype(jnp.float32) / config.num_choices)
  return routing, sums


def statistics(
  scores: Scores, chosen: jax.Array, slot: jax.Array, counted: jax.Array, decisions: Decisions = SORTED
) -> RoutingStatistics:
  """Sums what losses and metrics need over the tokens that count.

  Args:
    scores: of the router.
    chosen: int32 `[g, s, c]`, the choices that count as the load of an expert.
    slot: int32 `[g, s, k]`, -1 for no slot.
    counted: bool `[g, s]`.
    decisions: see `kernels.decisions`.
  """
  groups, _, num_experts = scores.values.shape
  weight = counted.astype(jnp.float32)
  # In the order of `first_come_slots`, so that a compiler sees that it is counted already.
  wanted = jnp.where(counted[..., None], chosen, num_experts).swapaxes(1, 2).reshape(groups, -1)
  _, expert_tokens = decisions.positions(wanted, num_experts)
  expert_tokens = jax.lax.stop_gradient(expert_tokens.astype(jnp.float32))
  log_partition = scores.log_partition.astype(jnp.float32)
  lost = jnp.mean(slot < 0, axis=-1) if chosen.shape == slot.shape else jnp.all(slot < 0, axis=-1)
  probability = jnp.einsum('gse,gs->ge', scores.probabilities, weight, precision=jax.lax.Precision.HIGHEST)
  return RoutingStatistics(
    tokens=jnp.sum(weight, axis=-1),
    expert_tokens=expert_tokens,
    balanced_tokens=expert_tokens / chosen.shape[-1],
    expert_probability=probability,
    dropped=jnp.sum(weight * lost, axis=-1),
    entropy=jax.lax.stop_gradient(jnp.sum(weight * scores.entropy, axis=-1)),
    squared_log_partition=jnp.sum(weight * jnp.square(log_partition), axis=-1),
  )
