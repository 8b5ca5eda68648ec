"""The optimizer, on optax; and how its state lies on the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from switch_jax import kernels
from switch_jax.config import ConfigError, OptimizerConfig
from switch_jax.config.named_objects import failing, load_object
from switch_jax.parallel import Layout
from switch_jax.training.adafactor import Factoring, factoring, moment_axes, scale_by_adafactor
from switch_jax.training.schedules import make_schedule


def _treatment(config: OptimizerConfig, abstract_parameters: Any, axes: Any) -> Any:
  """Returns the tree of Adafactor's `Factoring` for parameters with these logical axes."""
  decide = lambda x, names: factoring(x.shape, names, config)  # noqa: E731
  return jax.tree.map(decide, abstract_parameters, axes)


class Optimizer(NamedTuple):
  """An optax optimizer that also applies its updates.

  Attributes:
    init: parameters to the optimizer's state.
    apply: (gradients, state, parameters) to the new parameters and the new state.
  """

  init: Callable[[Any], Any]
  apply: Callable[[Any, Any, Any], tuple[Any, Any]]


def make_optimizer(
  config: OptimizerConfig,
  abstract_parameters: Any,
  axes: Any,
  layout: Layout,
  schedule: optax.Schedule | None = None,
) -> Optimizer:
  """Returns the optimizer. Its state is the same tree on every layout.

  Args:
    config: which one, and its settings.
    abstract_parameters: tree of shapes.
    axes: tree of logical axis names, a tuple for each parameter.
    layout: its devices have the form.
    schedule: the learning rate as a function of the step; None is the configuration's.

  Raises:
    ConfigError: the optimizer or the schedule is an object of the user that cannot be used.
  """
  schedule = schedule or make_schedule(config)
  clip = [] if config.max_grad_norm is None else [optax.clip_by_global_norm(config.max_grad_norm)]
  if ':' in config.name:
    return _optimizer(clip, _own_optimizer(config, schedule, abstract_parameters), [])
  decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay > 0 else []
  finish = [*decay, optax.scale_by_learning_rate(schedule)]
  if config.name == 'adamw':
    return _optimizer(clip, optax.scale_by_adam(config.beta1, config.beta2, config.epsilon), finish)
  treatment = _treatment(config, abstract_parameters, axes)
  form = kernels.forms(layout)['update']
  if form != 'in_place':
    return _optimizer(clip, scale_by_adafactor(config, treatment, both_at_once=form == 'sharded'), finish)

  def in_place(update, parameter, count):
    return parameter - schedule(count) * (update + config.weight_decay * parameter if decay else update)

  # What follows has the state of `finish` and does nothing.
  done = [*(optax.identity() for _ in decay), optax.scale_by_schedule(lambda count: 1.0)]
  chain = optax.chain(*clip, scale_by_adafactor(config, treatment, in_place), *done)
  return Optimizer(chain.init, chain.update)


def _own_optimizer(
  config: OptimizerConfig, schedule: optax.Schedule, abstract_parameters: Any
) -> optax.GradientTransformation:
  """Returns what the user's function makes, once it has been tried on shapes."""
  field = 'OptimizerConfig.name'
  make = load_object(config.name, field)
  with failing(f'{field} is {config.name!r}, which failed'):
    own = make(config, schedule)
    state = jax.eval_shape(own.init, abstract_parameters)
    updates, after = jax.eval_shape(own.update, abstract_parameters, state, abstract_parameters)
  described = lambda tree: jax.tree.map(lambda x: (tuple(x.shape), str(x.dtype)), tree)  # noqa: E731
  for what, tree, like in (('updates', updates, abstract_parameters), ('state', after, state)):
    if described(tree) != described(like):
      raise ConfigError(
        f'{field} is {config.name!r}, whose update() returns {what} of other shapes or dtypes than it was given; '
        'return arrays like the parameters, and a state like that of init().'
      )
  return own


def _optimizer(before: list, scale: optax.GradientTransformation, after: list) -> Optimizer:
  chain = optax.chain(*before, scale, *after)

  def apply(gradients, state, parameters):
    updates, state = chain.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state

  return Optimizer(chain.init, apply)


def state_shardings(
  config: OptimizerConfig, optimizer: Optimizer, abstract_parameters: Any, axes: Any, layout: Layout
) -> Any:
  """Returns the sharding of every array of the optimizer's state.

  An array kept for a parameter lies as the parameter does; Adafactor's rows and columns as its remaining axes;
  counters are on every device. They are given explicitly since zeros that depend on no input would otherwise be
  placed on the first device only.
  """
  how = _treatment(config, abstract_parameters, axes)
  shardings: dict[tuple[str, ...], Any] = {}
  shapes: dict[tuple[str, ...], tuple[int, ...]] = {}

  def register(path, parameter: jax.ShapeDtypeStruct, how: Factoring):
    path, sharding = tuple(key.key for key in path), parameter.sharding
    shardings[path], shapes[path] = sharding, parameter.shape
    axes = (*sharding.spec, *[None] * (parameter.ndim - len(sharding.spec)))
    for slot, slot_axes in moment_axes(axes, how).items():
      shardings[(*path, slot)] = NamedSharding(layout.mesh, PartitionSpec(*slot_axes))

  jax.tree_util.tree_map_with_path(register, abstract_parameters, how)

  def find(path, x):
    keys = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
    if x.shape != shapes.get(keys, x.shape):  # of a user's optimizer, which keeps something smaller for a parameter
      return layout.replicated()
    return shardings.get(keys, layout.replicated())

  return jax.tree_util.tree_map_with_path(find, jax.eval_shape(optimizer.init, abstract_parameters))
