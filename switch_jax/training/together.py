"""Several runs that differ in seed, learning rate or beginning only, trained in one program, each as if alone.

Tiny models leave most of a machine idle: what takes the time is starting, compiling and many small operations. One
program over all models does these once. Every run keeps its own MODEL_DIR, data and files, and can go on alone.
"""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError, RunConfig
from switch_jax.config.together import check_together
from switch_jax.folders.claim import Claim
from switch_jax.model.placement import make_layout
from switch_jax.monitoring.loss_watch import DivergenceError
from switch_jax.training.evaluation import EvaluationResult, evaluate_together
from switch_jax.training.loop import Storage, TrainResult, explained, result_of, step_at_the_end
from switch_jax.training.opening import Opened, open_run, open_store, record_beginning, restore_state
from switch_jax.training.progression import Member, Models, run_to_end
from switch_jax.training.state import TrainState
from switch_jax.training.step import make_step_together


def train_together(
  runs: Sequence[RunConfig], config_gins: Sequence[str], keep: list[Any] | None = None
) -> list[TrainResult | DivergenceError]:
  """Trains runs as `train` does each, all in one program; numbers are equal within rounding.

  Only the first one's progress is shown.

  Args:
    runs: of one model and one task; they may differ in seed, learning rate, MODEL_DIR and initial checkpoint.
    config_gins: the operative gin text of each.
    keep: gets what was opened, for a process that ends anyway: TensorFlow can take minutes to free many pipelines.

  Returns:
    In the order of the runs, the result of each, or why it was ended before the others. After a first SIGTERM or Ctrl-C
    all are saved and can go on, together or alone.

  Raises:
    ConfigError: as `train`, of any of them; or they cannot be trained together, or are not at the same step.
    KeyboardInterrupt: a second Ctrl-C, which does not wait for the step.
  """
  began = time.perf_counter()
  check_together(runs)
  found: list[Any] = [None] * len(runs)
  with contextlib.ExitStack() as stack:
    storage = stack.enter_context(Storage(f'{runs[0].model_dir}, or a MODEL_DIR trained together with it,'))
    places = [open_store(run, stack) for run in runs]
    going = []
    for number, (run, (store, _)) in enumerate(zip(runs, places, strict=True)):
      if (step := step_at_the_end(run, store)) is None:
        going.append(number)
      else:
        found[number] = result_of(run, restore_state(run, store, step), step, 'nothing to do')
    if not going:
      return found
    members = _open([runs[number] for number in going], [places[number] for number in going], stack)
    if keep is not None:
      keep.extend(members)
    models = ModelsTogether([member.opened for member in members])
    storage.is_written_to = True
    for number in going:
      record_beginning(runs[number], config_gins[number])
    reason = run_to_end(members, models)
    for number, member in zip(going, members, strict=True):
      facts = member.sum_up(models, began) if reason == 'finished' and not member.error else None
      member.opened.flush()
      if member.error:
        found[number] = explained(member.error, member.opened.store)
      else:
        found[number] = result_of(runs[number], models.state(member.number), member.step, reason, facts)
  return found


def _open(
  runs: Sequence[RunConfig], places: Sequence[tuple[CheckpointStore, Claim]], stack: contextlib.ExitStack
) -> list[Member]:
  """Opens runs that are at the same step and share what is equal.

  Raises:
    ConfigError: they are at different steps, their vocabularies differ, or there are several devices.
  """
  steps = {run.model_dir: store.latest_whole_step() or 0 for run, (store, _) in zip(runs, places, strict=True)}
  if len(set(steps.values())) > 1:
    where = ', '.join(f'{folder} at {step:,}' for folder, step in steps.items())
    raise ConfigError(
      f'runs that are trained together must be at the same step, and these are not: {where}. Train those at each step '
      'in a group of their own.'
    )
  if (devices := make_layout(runs[0]).mesh.size) > 1:
    raise ConfigError(
      f'runs are trained together on one device, and there are {devices}; train each alone, or let JAX see one only.'
    )
  members: list[Member] = []
  for number, (run, (store, claim)) in enumerate(zip(runs, places, strict=True)):
    opened = open_run(run, store, False, stack, [member.opened for member in members])
    if members and opened.record['vocabulary'] != members[0].opened.record['vocabulary']:
      raise ConfigError(
        f'{runs[0].model_dir} and {run.model_dir} begin with checkpoints of different vocabularies; train them apart.'
      )
    members.append(Member(number, opened, claim))
  return members


class ModelsTogether(Models):
  """The models of several runs, their states stacked along a first axis."""

  def __init__(self, opened: Sequence[Opened]):
    first = opened[0]
    self._opened = opened
    self._step = make_step_together([o.run for o in opened], first.layout, first.plan, first.special_tokens)
    self._eval_step = jax.jit(jax.vmap(first.eval_step, in_axes=(0, None)))
    self._states = jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states))(*(o.state for o in opened))
    self._take = jax.jit(
      lambda states, number: jax.tree.map(lambda x: x[number], states), out_shardings=first.plan.shardings
    )

  def advance(self) -> Sequence[Mapping[str, Any]]:
    """See `Models`."""
    made = {source: next(source) for source in dict.fromkeys(opened.source for opened in self._opened)}
    self._states, metrics = self._step(self._states, [made[opened.source] for opened in self._opened])
    return [jax.tree.map(lambda x, i=i: _Part(x, i), metrics) for i in range(len(self._opened))]

  def state(self, number: int) -> TrainState:
    """See `Models`."""
    return self._take(self._states, np.int32(number))

  def evaluate(self) -> Sequence[EvaluationResult]:
    """See `Models`."""
    return evaluate_together(self._eval_step, self._states.params, self._opened[0].held_out)


@dataclasses.dataclass(frozen=True)
class _Part:
  """One model's part of an array of all; what is fetched is the whole, once for all models.

  Attributes:
    whole: `[models, ...]`.
    number: of the model.
  """

  whole: jax.Array
  number: int

  def copy_to_host_async(self) -> None:
    self.whole.copy_to_host_async()

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(np.asarray(self.whole)[self.number], dtype)
