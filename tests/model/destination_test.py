"""Slots that shards share: the same numbers on every mesh as one group on one device, and as loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import MeshConfig, ModelConfig, MoeConfig
from switch_jax.model import destination
from switch_jax.model.experts import Experts, apply
from switch_jax.parallel import Layout, make_mesh

ROWS, LENGTH, WIDTH, HIDDEN, EXPERTS = 16, 3, 4, 6, 8
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
# The first expert is wanted by many.
LOGITS = (RANDOM.normal(size=(ROWS, LENGTH, EXPERTS)) + 1.5 * (np.arange(EXPERTS) == 0)).astype(np.float32)
REAL = np.arange(LENGTH) < RANDOM.choice([0, 1, 3, 3, 3], ROWS)[:, None]
KERNELS = {
  'wi': RANDOM.normal(size=(EXPERTS, WIDTH, HIDDEN)).astype(np.float32),
  'wo': RANDOM.normal(size=(EXPERTS, HIDDEN, WIDTH)).astype(np.float32),
}
WEIGHTS = RANDOM.normal(size=X.shape).astype(np.float32)
MESHES = [(1, 8, 1), (2, 4, 1), (2, 2, 2)]  # with 1, 2 and 4 experts a shard
TIGHT, LOOSE = 2, 40


def emulated(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
  """`jax.lax.ragged_all_to_all` as it is documented; NaN where the two sides disagree about sizes."""
  here, per_device = jax.lax.axis_index(axis_name), len(send_sizes) // jax.lax.axis_size(axis_name)
  gather = functools.partial(jax.lax.all_gather, axis_name=axis_name)
  operands, starts, sizes, targets = map(gather, (operand, input_offsets, send_sizes, output_offsets))
  row = jnp.arange(len(output))
  for source in range(len(operands)):
    for i in range(per_device):
      slice_here = here * per_device + i
      place = row - targets[source, slice_here]
      found = operands[source][jnp.clip(starts[source, slice_here] + place, 0, len(operand) - 1)]
      arrives = (place >= 0) & (place < sizes[source, slice_here])
      output = jnp.where(arrives[:, None], found, output)
      agreed = recv_sizes[source * per_device + i] == sizes[source, slice_here]
      output = jnp.where(agreed, output, jnp.nan)
  return output


@pytest.fixture(params=['gathered', 'ragged'])
def form(request, monkeypatch):
  """Gives CPUs each form, the collective of TPUs by others; returns the form of positions that goes with it."""
  monkeypatch.setitem(destination.MOVERS, 'gathered', destination.MOVERS[request.param])
  monkeypatch.setattr(jax.lax, 'ragged_all_to_all', emulated)
  return {'gathered': 'sorted', 'ragged': 'products'}[request.param]


@functools.cache
def layout(data=1, expert=1, model=1, positions='sorted'):
  mesh = MeshConfig(data=data, expert=expert, model=model)
  devices = jax.devices()[: data * expert * model]
  return Layout(make_mesh(mesh, None, devices), kernels=(('positions', positions),))


def results(mesh, dropout_key=None, training=False, **moe):
  """Returns the output, the gradients to tokens, logits and kernels, and the statistics."""
  config = ModelConfig(
    vocab_size=8, emb_dim=WIDTH, num_heads=2, head_dim=4, mlp_dim=HIDDEN, num_encoder_layers=2, num_decoder_layers=2,
    moe=MoeConfig(num_experts=EXPERTS, expert_dropout_rate=0.5 if dropout_key is not None else 0.0, **moe),
  )  # fmt: skip
  how = Experts(config, layout(*mesh), dropout_key is None and not training, 'mlp', WIDTH)

  def loss(x, logits, kernels):
    y, statistics = apply(how, x, logits, REAL, {}, kernels, dropout_key)
    return jnp.sum(y * WEIGHTS), (y, statistics)

  gradients, (y, statistics) = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(X, LOGITS, KERNELS)
  return (y, gradients), statistics


@functools.cache
def of_one_device(data, **fields):
  """Returns what `slots` makes of a replica's tokens as one group."""
  return results((1, 1, 1), sequences_per_group=ROWS // data, **fields)


def wanted(replica, data, choices):
  """Yields `(expert, choice, row, position)` of the tokens of a replica, in their order."""
  for choice in range(choices):
    for row in range(replica * ROWS // data, (replica + 1) * ROWS // data):
      for token in np.flatnonzero(REAL[row]):
        yield np.argsort(-LOGITS[row, token])[choice], choice, row, token


def with_slots(data, capacity, choices=1):
  """Returns which choices get one of the slots of their expert, bool `[rows, length, choices]`."""
  has = np.zeros((*REAL.shape, choices), bool)
  for replica in range(data):
    taken = np.zeros(EXPERTS, int)
    for expert, choice, row, token in wanted(replica, data, choices):
      has[row, token, choice] = taken[expert] < capacity
      taken[expert] += 1
  return has


def in_buffers(data, shards, num_rows, choices=1):
  """Returns which choices get one of the rows of their expert's shard, bool `[rows, length, choices]`."""
  has = np.zeros((*REAL.shape, choices), bool)
  for replica in range(data):
    for shard in range(shards):
      experts = range(shard * EXPERTS // shards, (shard + 1) * EXPERTS // shards)
      here = sorted(want for want in wanted(replica, data, choices) if want[0] in experts)
      for _, choice, row, token in here[:num_rows]:
        has[row, token, choice] = True
  return has


def dropped(has, data):
  return (REAL[..., None] & ~has).reshape(data, -1).sum(1) / has.shape[-1]


@jax.jit
def every_expert(x, logits, kernels, has):
  """Returns the output, of all experts applied to all tokens."""
  gate, best = jax.lax.top_k(jax.nn.softmax(logits), has.shape[-1])
  hidden = jax.nn.relu(jnp.einsum('rld,edf->rlef', x, kernels['wi']))
  y = jnp.einsum('rlef,efd->rled', hidden, kernels['wo'])
  y = jnp.take_along_axis(y, best[..., None], axis=2)
  return jnp.sum(jnp.where(has[..., None], gate[..., None] * y, 0.0), axis=2)


def by_replica(statistics, data):
  """Returns the sums over the groups of each replica; those of a shard are its own."""
  return jax.tree.map(lambda x: np.asarray(x).reshape(data, -1, *x.shape[1:]).sum(1), statistics)


def assert_equal(found, expected, data):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6), found[0], expected[0])
  sums = (by_replica(statistics, data) for statistics in (found[1], expected[1]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *sums)


def of_router(choices):
  """Returns the fields of a router of so many choices with plain gates."""
  return {} if choices == 1 else dict(router='topk', num_selected_experts=choices, normalize_gates=False)


@pytest.mark.parametrize(
  ('mesh', 'capacity', 'choices'),
  [*((mesh, TIGHT, 1) for mesh in MESHES), (MESHES[1], LOOSE, 1), (MESHES[2], TIGHT, 2)],
  ids=str,
)
def test_it_is_one_group_on_one_device(form, mesh, capacity, choices):
  fields = dict(expert_capacity=capacity, **of_router(choices))
  found = results((*mesh, form), dispatch='ragged', **fields)
  has = with_slots(mesh[0], capacity, choices)
  assert (dropped(has, mesh[0]) > 0).all() == (capacity != LOOSE)
  np.testing.assert_allclose(found[0][0], every_expert(X, LOGITS, KERNELS, has), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(by_replica(found[1], mesh[0]).dropped, dropped(has, mesh[0]))
  assert_equal(found, of_one_device(mesh[0], **fields), mesh[0])


@pytest.mark.parametrize(
  ('mesh', 'factor', 'choices'),
  [((2, 4, 1), 1.0, 1), ((2, 2, 2), 1.0, 1), ((1, 8, 1), 8.0, 1), ((2, 4, 1), 1.0, 2)],
  ids=str,
)
def test_runs_of_any_length_share_a_buffer(form, mesh, factor, choices):
  fields = dict(dispatch='ragged', train_capacity_factor=None, ragged_buffer_factor=factor, exploration='argmax')
  (y, gradients), statistics = results((*mesh, form), training=True, **fields, **of_router(choices))
  has = in_buffers(mesh[0], mesh[1], int(factor * choices * ROWS * LENGTH // (mesh[0] * mesh[1])), choices)
  assert (~has[REAL]).any() == (factor == 1.0)
  np.testing.assert_array_equal(by_replica(statistics, mesh[0]).dropped, dropped(has, mesh[0]))
  np.testing.assert_allclose(y, every_expert(X, LOGITS, KERNELS, has), rtol=1e-5, atol=1e-6)
  expected = jax.grad(lambda *arrays: jnp.sum(every_expert(*arrays, has) * WEIGHTS), argnums=(0, 1, 2))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), gradients, expected(X, LOGITS, KERNELS)
  )


def test_expert_dropout_and_padding_that_takes_slots(form):
  fields = dict(train_capacity_factor=1.0, padding_takes_slots=True)
  found = results((2, 2, 2, form), jax.random.key(3), dispatch='ragged', **fields)
  assert_equal(found, results((1, 1, 1), jax.random.key(3), sequences_per_group=ROWS // 2, **fields), 2)


def test_without_an_exchange_or_a_capacity_it_is_slots():
  alone = results((1, 1, 1), dispatch='ragged', expert_capacity=TIGHT)
  assert_equal(alone, of_one_device(1, expert_capacity=TIGHT), 1)
  free = results((1, 8, 1), dispatch='ragged', eval_capacity_factor=None)
  assert_equal(free, of_one_device(1, expert_capacity=ROWS * LENGTH), 1)


def test_the_capacity_is_that_of_all_tokens_that_are_exchanged():
  """Each of 8 shards would round 6 tokens / 8 experts up to a slot; together they have 6 slots an expert."""
  _, statistics = results((1, 8, 1), dispatch='ragged', eval_capacity_factor=1.0)
  wanted = [np.sum(LOGITS[REAL].argmax(-1) == expert) for expert in range(EXPERTS)]
  assert statistics.dropped.sum() == sum(max(0, count - 6) for count in wanted) > 0
