"""The products that a model asks for, counted from its configuration and not from a program."""

import dataclasses

from switch_jax.config import RunConfig
from switch_jax.parallel import Layout
from switch_jax.training.description import StackRouting, stack_routing


@dataclasses.dataclass(frozen=True)
class ForwardFlops:
  """FLOPs of a stack's forward pass over one global batch; a multiplication and an addition are two. Padding counts.

  Attributes:
    projections: query, key, value and output of all attentions. Keys and values of the cross-attention are those of
      the encoder's tokens, and belong to the decoder.
    scores: queries with keys and weights with values, of all pairs in a row, masked ones too.
    dense: feed-forward networks, shared experts and extra networks too.
    experts: the rows that they compute: groups x experts x effective capacity, empty slots too; without dropping the
      tokens times their choices.
    empty_slots: of those, what is above a row for each token and choice.
    router: its logits.
    logits: the output projection, in the decoder.
  """

  projections: float
  scores: float
  dense: float
  experts: float
  empty_slots: float
  router: float
  logits: float

  @property
  def useful(self) -> float:
    """The products of tokens with parameters, the router and empty slots apart."""
    return self.projections + self.dense + self.experts - self.empty_slots + self.logits

  @property
  def layers(self) -> float:
    """All products of the layers."""
    return self.projections + self.scores + self.dense + self.experts + self.router


def _expert_rows(routing: StackRouting, choices: int) -> int:
  """Returns the rows that the experts of one layer compute for the global batch, in training."""
  if routing.train_capacity is None:
    return routing.groups * routing.group_tokens * choices
  return routing.groups * routing.train_capacity * routing.num_experts


def forward_flops(run: RunConfig, layout: Layout) -> dict[str, ForwardFlops]:
  """Counts the products of the forward pass over the global batch, by stack.

  Args:
    run: the model, the batch and the lengths.
    layout: gives the shards that the batch is split into; a routing group is a shard where nothing else is set.
  """
  model, moe, length = run.model, run.model.moe, run.row_lengths
  tokens = {stack: run.data.batch_size * n for stack, n in length.items()}
  routings = {routing.stack: routing for routing in stack_routing(run, layout)}
  choices = moe.experts_per_token if moe else 1
  joined = model.num_heads * model.head_dim
  projection = 2 * model.emb_dim * joined
  inner = len(model.mlp_activations)  # kernels before the activation
  found = {}
  for stack, count in tokens.items():
    layers, switch = model.num_layers(stack), len(model.switch_layers(stack))
    switch_attention = len(model.switch_attention_layers(stack))
    projections = ((layers - switch_attention) * 4 + switch_attention) * projection * count
    scores = layers * 2 * 2 * joined * length[stack] * count
    dense = (layers - switch) * (inner + 1) * 2 * model.emb_dim * model.mlp_dim * count
    experts = empty_slots = router = logits = 0.0
    if stack in routings:
      slots, hidden = _expert_rows(routings[stack], choices), moe.expert_mlp_dim or model.mlp_dim
      experts = switch * (inner + 1) * 2 * model.emb_dim * hidden * slots
      fan_in = model.emb_dim if moe.attention_expert == 'linear' else hidden
      one = 2 * 2 * fan_in * joined  # the query, and the shared key and value
      if moe.attention_expert == 'mlp':
        one += inner * 2 * model.emb_dim * hidden
      experts += switch_attention * one * slots
      router = (switch + switch_attention) * 2 * model.emb_dim * moe.num_experts * count
      empty_slots = experts * max(0.0, 1 - choices * count / slots)
      beside = moe.shared_width(model.mlp_dim) + (model.mlp_dim if moe.extra_mlp else 0)
      dense += switch * (inner + 1) * 2 * model.emb_dim * beside * count
    if stack == 'decoder':
      if not model.is_decoder_only:
        projections += layers * 2 * projection * (count + tokens['encoder'])
        scores += layers * 2 * 2 * joined * length['encoder'] * count
      logits = 2 * model.emb_dim * model.vocab_size * count
    found[stack] = ForwardFlops(projections, scores, dense, experts, empty_slots, router, logits)
  return found


def model_flops(run: RunConfig, layout: Layout) -> float:
  """Returns the FLOPs that a training step on the global batch needs: three times the forward pass's `useful` ones.

  Those are the projections of attention, the dense feed-forward networks, one row of an expert for each token and
  choice, and the logits; the backward pass has two products for each. It is the usual 6 x parameters x tokens, with
  the parameters that a token meets. Empty slots (`empty_slot_flops`), attention's scores (`score_flops`), the router,
  norms, softmax and the optimizer are left out, so even a perfect program is somewhat above 1.0 times this number.
  """
  return 3 * sum(stack.useful for stack in forward_flops(run, layout).values())


def score_flops(run: RunConfig, layout: Layout) -> float:
  """Returns the FLOPs of attention's scores and weighted values in a training step, which `model_flops` leaves out."""
  return 3 * sum(stack.scores for stack in forward_flops(run, layout).values())


def empty_slot_flops(run: RunConfig, layout: Layout) -> float:
  """Returns the FLOPs of a training step that experts spend on slots beyond a row for each token and choice."""
  return 3 * sum(stack.empty_slots for stack in forward_flops(run, layout).values())
