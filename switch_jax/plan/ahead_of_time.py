"""The training step compiled by the TPU compiler (libtpu), from abstract arrays only, for a topology given by name.

Nothing is allocated, no data is read and no MODEL_DIR touched; a machine without a TPU will do.
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
import pickle
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable, topologies

from switch_jax.config import ConfigError, RunConfig
from switch_jax.distillation.student import Distillation
from switch_jax.model import parameter_count
from switch_jax.model.placement import make_layout
from switch_jax.parallel import Layout
from switch_jax.plan import collectives, flops, loops
from switch_jax.plan.checkpoint_size import bytes_by_host
from switch_jax.plan.estimate import Estimate, estimate
from switch_jax.plan.program import instructions
from switch_jax.training.description import active_parameters, stack_routing
from switch_jax.training.state import plan_state
from switch_jax.training.step import make_train_step

TOPOLOGIES = (
  'v2:4x4, v3:4x4 (16 chips, 32 cores), v3:32x32, v4:4x4x4, v5e:4x4, v5p:4x4x4, v6e:4x4, tpu7x:2x2x4: the generation '
  'and the chips along each side, multiples of the 2 x 2 (x 1) of a host'
)

# Read by libtpu when it is loaded: do not ask the metadata server of Google Cloud what this machine is, do not complain
# that there is none, and do not claim the machine's TPU for this process alone.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v3-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40, 'P': 2**50}
_SIZE = r'([\d.]+)([KMGTP]?)i?B?'
# Two sentences of the compiler: of the whole program at once, and of the memory that its allocation came to.
_OUT_OF_MEMORY = (
  rf'\({_SIZE}\) exceeds available HBM \({_SIZE}\)',
  rf'Used {_SIZE} of {_SIZE} hbm',
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the compiler says of a training step. Bytes and FLOPs are those of one core, of one step.

  Attributes:
    topology: as asked for.
    device_kind: the compiler's name of the TPU.
    cores: devices in JAX's sense; two a chip on v2, v3, v4 and tpu7x here.
    mesh: sizes of the mesh's axes.
    parameters, active_parameters: all of them, and those that one token meets.
    parameter_bytes_per_core, optimizer_bytes_per_core: of the state.
    temporary_bytes_per_core: gradients, activations and the like; None where it does not fit.
    hbm_bytes_per_core: all that the compiler needs: arguments, results that do not reuse them, temporaries and the
      program; where it does not fit, the total of the compiler's message.
    checkpoint_bytes: of the state, which a checkpoint holds, before compression.
    checkpoint_bytes_per_host: what the host that writes most of it writes.
    hosts: processes that train.
    hbm_bytes_available: what the compiler grants a program on this TPU, learnt from its refusal of a too large one.
    fits: whether the need is within it.
    flops_per_core: the compiler's count, loops multiplied out; None where it does not fit.
    model_flops_per_core: what the model asks for, see `flops.model_flops`.
    score_flops_per_core: three times attention's products of queries, keys and values, which that leaves out.
    empty_slot_flops_per_core: of experts' slots beyond a row for each token and choice, which it leaves out too.
    collectives: count and bytes by kind.
    slots_per_token: rows that the experts compute for a token in training, by stack; None is drop-free.
    capacity: slots of an expert in a routing group, by stack.
    compile_seconds: wall time of the compilation.
    estimate: of the step's time, by the compiler's schedule; None where it does not fit or the device is unknown.
    loops: turns of the scans over layers by which FLOPs were multiplied, by stack.
  """

  topology: str
  device_kind: str
  cores: int
  mesh: dict[str, int]
  parameters: int
  active_parameters: int
  parameter_bytes_per_core: int
  optimizer_bytes_per_core: int
  temporary_bytes_per_core: int | None
  hbm_bytes_per_core: int
  hbm_bytes_available: int
  checkpoint_bytes: int
  checkpoint_bytes_per_host: int
  hosts: int
  fits: bool
  flops_per_core: float | None
  model_flops_per_core: float
  score_flops_per_core: float
  empty_slot_flops_per_core: float
  collectives: dict[str, dict[str, int]] | None
  slots_per_token: dict[str, float | None]
  capacity: dict[str, int | None]
  compile_seconds: float
  estimate: Estimate | None
  loops: dict[str, int]


def topology_devices(name: str, num_slices: int = 1) -> Sequence[Any]:
  """Returns the devices of a TPU topology that need not exist, for ahead-of-time compilation only.

  Args:
    name: as `v3:32x32`.
    num_slices: so many of them, joined by the data-center network.

  Raises:
    ConfigError: libtpu is not installed or does not know the topology.
  """
  if not importlib.util.find_spec('libtpu'):
    raise ConfigError(
      "libtpu, which has the TPU compiler, is not installed; --run_mode=plan needs it: pip install -e '.[tpu]'."
    )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  more = {'num_slices': num_slices} if num_slices > 1 else {}
  try:
    return topologies.get_topology_desc(platform='tpu', topology_name=name, **more).devices
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition(': ')[2]
    raise ConfigError(f'--topology is {name!r}, which libtpu refuses: {reason}. Valid are {TOPOLOGIES}.') from None


def _out_of_memory(error: Exception) -> tuple[int, int] | None:
  """Returns bytes needed and bytes available from the compiler's message; None if it is another error."""
  if 'RESOURCE_EXHAUSTED' not in str(error):
    return None
  for pattern in _OUT_OF_MEMORY:
    if match := re.search(pattern, str(error)):
      needed, unit, available, other = match.groups()
      return int(float(needed) * _UNITS[unit]), int(float(available) * _UNITS[other])
  return None


def available_hbm(device: Any) -> int:
  """Returns the bytes of HBM that the compiler grants a program: it says so when it refuses one of a pebibyte."""
  sharding = jax.sharding.SingleDeviceSharding(device)
  too_large = jax.ShapeDtypeStruct((2**48,), jnp.float32, sharding=sharding)
  try:
    jax.jit(lambda x: x + 1, out_shardings=sharding).lower(too_large).compile()
  except jax.errors.JaxRuntimeError as error:
    if found := _out_of_memory(error):
      return found[1]
    raise
  raise RuntimeError('the compiler accepted a program of a pebibyte')


def abstract_batch(run: RunConfig, layout: Layout) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the batch that the data pipeline would hand to the step, as shapes."""
  features = {
    'encoder': ['encoder_input_tokens', 'encoder_segment_ids', 'encoder_positions'],
    'decoder': [
      'decoder_input_tokens',
      'decoder_target_tokens',
      'decoder_segment_ids',
      'decoder_positions',
      'decoder_loss_weights',
    ],
  }
  if run.model.is_decoder_only and 'inputs' in run.data.feature_lengths:
    features['decoder'].append('decoder_causal_attention')
  sharding = layout.batch_sharding()
  return {
    name: jax.ShapeDtypeStruct((run.data.batch_size, length), jnp.int32, sharding=sharding)
    for stack, length in run.row_lengths.items()
    for name in features[stack]
  }


def compile_step(run: RunConfig, layout: Layout) -> tuple[Any, float]:
  """Compiles the training step of a run for the devices of a layout.

  Returns:
    The executable (to be inspected, and run where the devices exist), and the seconds it took to compile.
  """
  state, lessons = plan_state(run, layout), Distillation.open(run).abstract_lessons(layout)
  batch = abstract_batch(run, layout) | lessons.abstract_entries
  lowered = make_train_step(run, layout, state, lessons=lessons).lower(state.abstract, batch, *lessons.arguments)
  start = time.monotonic()
  compiled = lowered.compile()
  return compiled, time.monotonic() - start


def _bytes_per_core(tree: Any) -> int:
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def make_plan(
  run: RunConfig, topology: str, serialize: str | None = None, note: Callable[[str], None] = lambda text: None
) -> Plan:
  """Compiles a run's training step for a topology and returns what the compiler says of it.

  Args:
    run: the run; its data and its MODEL_DIR are not touched.
    topology: as `v3:32x32`.
    serialize: where to keep the executable: a pickle of what `jax.experimental.serialize_executable.serialize` returns.
    note: is told what is being compiled.

  Raises:
    ConfigError: no libtpu, an unknown topology, or a run that does not divide over it.
  """
  devices = topology_devices(topology, run.mesh.num_slices)
  layout = make_layout(run, devices, Distillation.open(run).models)
  state = plan_state(run, layout).abstract
  routings = stack_routing(run, layout)
  available = available_hbm(devices[0])
  written = bytes_by_host(state)
  known = dict(
    topology=topology,
    device_kind=devices[0].device_kind,
    cores=len(devices),
    mesh=dict(layout.mesh.shape),
    parameters=parameter_count(state.params),
    active_parameters=active_parameters(run, layout),
    parameter_bytes_per_core=_bytes_per_core(state.params),
    optimizer_bytes_per_core=_bytes_per_core(state.opt_state),
    checkpoint_bytes=sum(written.values()),
    checkpoint_bytes_per_host=max(written.values()),
    hosts=len(written),
    hbm_bytes_available=available,
    model_flops_per_core=flops.model_flops(run, layout) / len(devices),
    score_flops_per_core=flops.score_flops(run, layout) / len(devices),
    empty_slot_flops_per_core=flops.empty_slot_flops(run, layout) / len(devices),
    slots_per_token={r.stack: r.slots_per_token(r.train_capacity) for r in routings},
    capacity={r.stack: r.train_capacity for r in routings},
    loops=loops.turns(run.model),
  )
  note(f'compiling the training step for {len(devices)} {devices[0].device_kind} cores; this can take minutes')
  start = time.monotonic()
  try:
    compiled, seconds = compile_step(run, layout)
  except jax.errors.JaxRuntimeError as error:
    found = _out_of_memory(error)
    if found is None:
      raise
    return Plan(
      **known,
      temporary_bytes_per_core=None,
      hbm_bytes_per_core=found[0],
      fits=False,
      flops_per_core=None,
      collectives=None,
      compile_seconds=time.monotonic() - start,
      estimate=None,
    )
  if serialize:
    pathlib.Path(serialize).write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
  memory = compiled.memory_analysis()
  needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  needed += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  turns = known['loops']
  same = set(turns.values())
  program = list(instructions(compiled.as_text(), same.pop() if len(same) == 1 else None))
  return Plan(
    **known,
    temporary_bytes_per_core=memory.temp_size_in_bytes,
    hbm_bytes_per_core=needed,
    fits=needed <= available,
    flops_per_core=loops.step_flops(run, layout, compiled, compile_step, note),
    collectives=collectives.summary(list(collectives.of_instructions(program))),
    compile_seconds=seconds,
    estimate=estimate(program, devices[0].device_kind, len(devices)),
  )
