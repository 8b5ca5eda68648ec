"""Saves one state on several hosts, emulated as processes of this machine, and shows what each of them writes.

  python benchmarks/checkpoint_hosts.py --processes=4

The state has experts split over half of the devices, dense matrices that every device holds, and a vector whose length
divides by nothing. Bytes of each process's own folder are compared with what `--run_mode=plan` would say. Then the same
with Orbax's replica-parallel saving switched off, and both are read back and compared bit for bit.
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

DEVICES = 8


def make_state(mesh, megabytes):
  """Returns arrays of so many MB, a half of them experts."""
  import jax
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec

  rows = megabytes * 250_000 // 2 // 1024 // DEVICES * DEVICES
  specs = {'experts': ((rows, 1024), 'expert'), 'dense': ((rows, 1024), None), 'odd': ((10_007,), None)}
  state = {}
  for number, (name, (shape, axis)) in enumerate(specs.items()):
    values = np.random.default_rng(number).standard_normal(shape, np.float32)
    sharding = NamedSharding(mesh, PartitionSpec(axis) if axis else PartitionSpec())
    state[name] = jax.make_array_from_callback(shape, sharding, lambda index, values=values: values[index])
  return state


def save(folder, index, processes, address, megabytes, single):
  """One host: joins the others and saves."""
  import jax
  import orbax.checkpoint as ocp

  jax.distributed.initialize(address, processes, index)
  from switch_jax.checkpoints import CheckpointStore
  from switch_jax.config import CheckpointConfig
  from switch_jax.plan.checkpoint_size import bytes_by_host

  if single:
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
  mesh = jax.make_mesh((2, DEVICES // 2), ('data', 'expert'))
  state = make_state(mesh, megabytes)
  store = CheckpointStore(folder, CheckpointConfig())
  began = time.perf_counter()
  store.save(1, {'params': state}, {})
  copied = time.perf_counter()
  store.wait()
  saved = time.perf_counter()
  store.check_files(1)
  verified = time.perf_counter()
  if index == 0:
    print(f'saved in {copied - began:.2f} + {saved - copied:.2f} s (training waits + background), ', end='')
    print(f'verified by all in {verified - saved:.2f} s')
    for host, expected in bytes_by_host(state).items():
      own = pathlib.Path(folder, 'checkpoints', '1', 'state', f'ocdbt.process_{host}')
      found = sum(path.stat().st_size for path in own.rglob('*') if path.is_file())
      print(f'  host {host}: {found / 1e6:.1f} MB written' + ('' if single else f', {expected / 1e6:.1f} MB planned'))
  store.close()


def main():
  """Prints both tables."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--processes', type=int, default=4)
  parser.add_argument('--megabytes', type=int, default=200)
  parser.add_argument('--host', nargs=4, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.host:
    folder, index, address, single = flags.host
    save(folder, int(index), flags.processes, address, flags.megabytes, single == 'single')
    return
  from switch_jax.launch import runs_on_cpu

  assert runs_on_cpu(), 'set JAX_PLATFORMS=cpu'
  command = [sys.executable, __file__, f'--processes={flags.processes}', f'--megabytes={flags.megabytes}']
  states = []
  with tempfile.TemporaryDirectory(prefix='checkpoint_hosts_') as place:
    for kind in ('replica-parallel', 'single'):
      print(f'{kind}:', flush=True)
      with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
      folder = pathlib.Path(place, kind)
      hosts = [
        subprocess.Popen(
          [*command, '--host', str(folder), str(index), address, kind],
          env={**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={DEVICES // flags.processes}'},
        )
        for index in range(flags.processes)
      ]
      if any(host.wait() for host in hosts):
        raise SystemExit('a host failed')
      from switch_jax.checkpoints import CheckpointStore

      states.append(CheckpointStore(folder).restore_params(1))
  equal = all((states[0][name] == states[1][name]).all() for name in states[0])
  print('both are read back equal in every bit' if equal else 'THEY DIFFER')
  raise SystemExit(0 if equal else 1)


if __name__ == '__main__':
  main()
