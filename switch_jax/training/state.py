"""The state of training, abstract and real."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from switch_jax import kernels
from switch_jax.config import RunConfig
from switch_jax.model import abstract_parameters, init_parameters, parameter_axes
from switch_jax.model.parameters import dtypes_in_layers
from switch_jax.parallel import Layout
from switch_jax.parallel.update_sharding import split_over_tokens
from switch_jax.training.optimizer import Optimizer, make_optimizer, state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a checkpoint holds.

  Attributes:
    step: int32 scalar, updates made.
    params: nested dict of float32 arrays under T5X's names.
    opt_state: the optimizer's.
  """

  step: jax.Array
  params: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class StatePlan:
  """Everything about the state that is known before any array exists.

  Attributes:
    optimizer: makes and applies updates.
    abstract: a `TrainState` of `jax.ShapeDtypeStruct` with shardings.
    in_layers: the parameters as the layers use them, a tree of `jax.ShapeDtypeStruct`; None where that is how they are
      kept.
  """

  optimizer: Optimizer
  abstract: TrainState
  in_layers: Any = None

  @property
  def shardings(self) -> TrainState:
    """The sharding of every array."""
    return jax.tree.map(lambda x: x.sharding, self.abstract)

  def gather(self, params: Any) -> Any:
    """Returns the parameters as the layers use them, float32 arrays: each token shard's parts from all of them.

    What the layers would round to bfloat16 is rounded before it travels, which changes no number.
    """
    if self.in_layers is None:
      return params

    def one(x: jax.Array, kept: jax.ShapeDtypeStruct, used: jax.ShapeDtypeStruct) -> jax.Array:
      if kept.sharding == used.sharding:
        return x
      return jax.lax.with_sharding_constraint(x.astype(used.dtype), used.sharding).astype(x.dtype)

    return jax.tree.map(one, params, self.abstract.params, self.in_layers)

  def scatter(self, gradients: Any) -> Any:
    """Returns the parts of the gradients, as they come from the layers, that belong to the kept parameters."""
    if self.in_layers is None:
      return gradients

    def one(x: jax.Array, kept: jax.ShapeDtypeStruct, used: jax.ShapeDtypeStruct) -> jax.Array:
      if kept.sharding == used.sharding:
        return x
      # First as it comes: asked for parts at once, the partitioner would gather the tokens of all shards to look them
      # up in an embedding that is split, and turn products into rings of small ones.
      whole = jax.lax.with_sharding_constraint(x, used.sharding)
      return jax.lax.with_sharding_constraint(whole, kept.sharding)

    return jax.tree.map(one, gradients, self.abstract.params, self.in_layers)


def plan_state(run: RunConfig, layout: Layout) -> StatePlan:
  """Returns the optimizer and the abstract state of a run; allocates nothing."""
  params = abstract_parameters(run.model, layout)
  axes = parameter_axes(run.model)
  in_layers = None
  if kernels.forms(layout)['update'] == 'sharded':
    in_layers = jax.tree.map(
      lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), params, dtypes_in_layers(run.model)
    )
    params = jax.tree.map(lambda x, names: split_over_tokens(layout, x, names), params, axes)
  optimizer = make_optimizer(run.optimizer, params, axes, layout)
  shardings = state_shardings(run.optimizer, optimizer, params, axes, layout)
  opt_state = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    jax.eval_shape(optimizer.init, params),
    shardings,
  )
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.replicated())
  return StatePlan(optimizer, TrainState(step, params, opt_state), in_layers)


def init_state(run: RunConfig, layout: Layout, plan: StatePlan, params: Any = None) -> TrainState:
  """Returns the state at step 0, with these parameters or else new ones; the same numbers on every mesh."""
  if params is None:
    params = init_parameters(run.model, layout, jax.random.key(run.random_seed))
  if plan.in_layers is not None:
    params = jax.jit(lambda params: params, out_shardings=plan.shardings.params)(params)
  opt_state = jax.jit(plan.optimizer.init, out_shardings=plan.shardings.opt_state)(params)
  return TrainState(jax.device_put(jnp.zeros((), jnp.int32), layout.replicated()), params, opt_state)
