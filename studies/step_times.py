"""Seconds of a training step of a study's models, which take turns on one machine: what fewer steps are in time.

    python -m studies horizon --step_times    # on an idle machine; writes results/horizon.step_times.json

One model at a time on all cores, as a user would train it, and not several runs beside each other as the studies do.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from studies import records
from switch_jax.config import RunConfig
from switch_jax.model.placement import make_layout
from switch_jax.plan.ahead_of_time import abstract_batch
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step

WARM_UP = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTimes:
  """Attributes: what device; steps measured of each point; median seconds of a step by point; all of them."""

  device: str
  steps: int
  medians: Mapping[str, float]
  seconds: Mapping[str, Sequence[float]]


class _Trainer:
  """A model that makes steps on one batch of random tokens."""

  def __init__(self, run: RunConfig):
    layout = make_layout(run)
    plan = plan_state(run, layout)
    self._state, self._step = init_state(run, layout, plan), make_train_step(run, layout, plan)
    random = np.random.default_rng(0)

    def fill(name: str, x: jax.ShapeDtypeStruct) -> np.ndarray:
      return random.integers(3, 259, x.shape, x.dtype) if name.endswith('_tokens') else np.ones(x.shape, x.dtype)

    batch = {name: fill(name, x) for name, x in abstract_batch(run, layout).items()}
    self._batch = jax.device_put(batch, layout.batch_sharding())

  def seconds(self) -> float:
    """Makes a step; returns how long it took."""
    began = time.perf_counter()
    self._state, metrics = self._step(self._state, self._batch)
    jax.block_until_ready((self._state, metrics))
    return time.perf_counter() - began


def measure(runs: Mapping[str, RunConfig], steps: int = 40) -> StepTimes:
  """Returns the seconds of steps of these runs, by name, made in turns."""
  trainers = {name: _Trainer(run) for name, run in runs.items()}
  rounds = [{name: trainer.seconds() for name, trainer in trainers.items()} for _ in range(WARM_UP + steps)]
  seconds = {name: [found[name] for found in rounds[WARM_UP:]] for name in runs}
  device = f'{jax.local_device_count()} {jnp.zeros(()).device.device_kind} device'
  return StepTimes(
    device=device, steps=steps, medians={n: statistics.median(s) for n, s in seconds.items()}, seconds=seconds
  )


def place(study: str, folder: pathlib.Path = records.RESULTS) -> pathlib.Path:
  """Returns where the times of a study's steps are written."""
  return folder / f'{study}.step_times.json'


def write(study: str, found: StepTimes, folder: pathlib.Path = records.RESULTS) -> pathlib.Path:
  """Writes the times; returns their path."""
  folder.mkdir(parents=True, exist_ok=True)
  found = dataclasses.replace(found, seconds={n: [round(x, 6) for x in s] for n, s in found.seconds.items()})
  place(study, folder).write_text(records.json_text(dataclasses.asdict(found)), encoding='utf-8')
  return place(study, folder)


def load(study: str, folder: pathlib.Path = records.RESULTS) -> StepTimes | None:
  """Returns the times of a study's steps, None if they were not measured."""
  path = place(study, folder)
  return StepTimes(**json.loads(path.read_text(encoding='utf-8'))) if path.exists() else None
