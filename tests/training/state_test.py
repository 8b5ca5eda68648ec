"""The state of training: abstract and real are the same tree, and new numbers do not depend on the mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import DataConfig, MeshConfig, OptimizerConfig, RunConfig
from switch_jax.model.parameters import dtypes_in_layers
from switch_jax.parallel import Layout, make_mesh, update_sharding
from switch_jax.training.state import init_state, plan_state
from tests.training.short_runs import QUIET

DATA = DataConfig(mixture_or_task_name='none', feature_lengths={'inputs': 4, 'targets': 4}, batch_size=8)
RUN = RunConfig(
  model_dir='none', model=QUIET, data=DATA, train_steps=1, random_seed=3,
  optimizer=OptimizerConfig(min_dim_size_to_factor=8),
)  # fmt: skip


@pytest.fixture(scope='module', params=[(1, 1, 1), (2, 2, 2)], ids=str)
def made(request):
  shape = request.param
  mesh = MeshConfig(**dict(zip(('data', 'expert', 'model'), shape, strict=True)))
  layout = Layout(make_mesh(mesh, None, jax.devices()[: np.prod(shape)]))
  plan = plan_state(RUN, layout)
  return layout, plan, init_state(RUN, layout, plan)


def test_a_new_state_is_what_was_planned(made):
  _, plan, state = made
  assert int(state.step) == 0
  assert jax.tree.structure(state) == jax.tree.structure(plan.abstract)

  def check(path, planned, real):
    assert (planned.shape, planned.dtype) == (real.shape, real.dtype), path
    assert real.sharding.is_equivalent_to(planned.sharding, real.ndim), path

  jax.tree_util.tree_map_with_path(check, plan.abstract, state)
  assert jax.tree.leaves(plan.shardings) == [x.sharding for x in jax.tree.leaves(plan.abstract)]


def test_the_same_numbers_on_every_mesh(made):
  expected = init_state(RUN, Layout.single_device(), plan_state(RUN, Layout.single_device()))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), made[2], expected)


def test_experts_and_their_moments_lie_on_the_expert_axis(made):
  layout, plan, _ = made
  of = lambda tree: tree['encoder']['layers_0']['mlp']['expert']['wi']['kernel']  # noqa: E731
  local = 4 // layout.size('expert')
  assert of(plan.abstract.params).sharding.shard_shape((4, 16, 32))[0] == local
  moments = of(plan.abstract.opt_state[0].moments)
  assert {name: x.sharding.shard_shape(x.shape)[0] for name, x in moments.items()} == {'v_row': local, 'v_col': local}


def test_another_seed_gives_other_numbers_and_given_parameters_are_kept():
  layout = Layout.single_device()
  plan = plan_state(RUN, layout)
  of_seed = [
    init_state(dataclasses.replace(RUN, random_seed=seed), layout, plan).params['token_embedder']['embedding']
    for seed in (3, 4)
  ]
  assert not np.allclose(*of_seed)
  params = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), plan.abstract.params)
  state = init_state(RUN, layout, plan, params)
  jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0.5), state.params)


@pytest.fixture
def in_parts(monkeypatch):
  """A plan in which every token shard keeps its part, of small parameters too."""
  monkeypatch.setattr(update_sharding, 'SMALLEST_SPLIT', 64)
  mesh = MeshConfig(data=2, expert=2, model=2, kernels={'update': 'sharded'})
  layout = Layout.of(mesh, make_mesh(mesh, None, jax.devices()))
  return layout, plan_state(RUN, layout)


def test_parts_are_kept_and_their_moments_with_them(in_parts):
  layout, plan = in_parts
  state = init_state(RUN, layout, plan)
  kernel = lambda tree: tree['encoder']['layers_0']['attention']['query']['kernel']  # noqa: E731
  assert [x.data.shape for x in kernel(state.params).addressable_shards] == [(4, 8)] * 8
  moments = kernel(state.opt_state[0].moments)
  assert {name: x.sharding.shard_shape(x.shape) for name, x in moments.items()} == {'v_row': (4,), 'v_col': (8,)}
  embedding = state.params['token_embedder']['embedding']
  assert embedding.sharding.shard_shape(embedding.shape) == (64 // 8, 16)
  expected = init_state(RUN, Layout.single_device(), plan_state(RUN, Layout.single_device()))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, expected)


def test_the_layers_get_the_whole_parameters_as_they_round_them(in_parts):
  layout, plan = in_parts
  params = init_state(RUN, layout, plan).params
  rounded = dataclasses.replace(plan, in_layers=jax.tree.map(
    lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding),
    plan.in_layers, dtypes_in_layers(dataclasses.replace(QUIET, activation_dtype='bfloat16')),
  ))  # fmt: skip
  found, exact = jax.jit(rounded.gather)(params), jax.jit(plan.gather)(params)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), exact, params)
  kernel = lambda tree: tree['decoder']['layers_0']['mlp']['router']['router_weights']['w']['kernel']  # noqa: E731
  np.testing.assert_array_equal(kernel(found), kernel(params))
  embedding, whole = found['token_embedder']['embedding'], params['token_embedder']['embedding']
  assert embedding.sharding.is_equivalent_to(layout.sharding('vocab', 'embed'), 2)
  np.testing.assert_array_equal(embedding, whole.astype(jnp.bfloat16).astype(jnp.float32))
