"""Checkpoints that are damaged or made to harm, at random: what `benchmarks/fuzz_checkpoints.py` and the tests load.

A mutation is a function of a seed alone, so a case that fails is found again by its number.
"""

import json
import os
import pathlib
import shutil
import socket
import struct

import msgpack
import numpy as np
import orbax.checkpoint as ocp

from switch_jax import interop
from switch_jax.config import ConfigError
from switch_jax.interop import loading
from tests.interop.own_checkpoints import MODELS, save_own, state_of

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures'
KINDS = ('t5x', 't5x_orbax', 'huggingface', 'own')
FORMATS = {'t5x': 't5x', 't5x_orbax': 't5x', 'huggingface': 'huggingface', 'own': 'switch_jax'}

_DECODERS = ('llama_tiny', 'mixtral_tiny')

_DEEP: list = []
for _ in range(200):
  _DEEP = [_DEEP]
HOSTILE = (
  None, True, False, 0, -1, 5, 1.5, 2**31, 2**40, 2**60, 2**64, -(2**63), 10**400, float('nan'), float('inf'), -0.0,
  'x', '', '../outside/secret', '/etc/passwd', '.', 'a\0b', 'x' * 5000, '\ud800', '|O', '<f8', '<i4', 'float64',
  [], {}, [None], [-1], [2**40], [2**40, 2**40], [0, 0], [1, 1, 1, 1], ['x'], {'x': 5}, {'id': 'blosc'}, _DEEP,
)  # fmt: skip


def write_sources(folder):
  """Writes whole checkpoints to be damaged; returns by kind a list of folders."""
  _, params = interop.load('t5x', FIXTURES / 't5x_switch_base_tiny')
  state = {'step': np.int32(41), 'param_states': {'decoder': {'decoder_norm': {'scale': {'v': np.ones(32, 'f4')}}}}}
  orbax, own = [], []
  for is_database in (True, False):
    path = folder / f't5x_orbax_{is_database}'
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=is_database)).save(
      path / 'state', {'target': params, 'state': state}
    )
    orbax.append(path)
  for name in ('base', 'scanned', 'dense'):
    own.append(folder / f'own_{name}')
    save_own(own[-1], MODELS[name])
  own.append(shutil.copytree(own[0], folder / 'own_folders'))
  tree = state_of(own[-1])
  shutil.rmtree(own[-1] / 'checkpoints/9/state')
  ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)).save(own[-1] / 'checkpoints/9/state', tree)
  seal(own[-1])
  return {
    't5x': [FIXTURES / 't5x_switch_base_tiny'],
    't5x_orbax': orbax,
    'huggingface': [FIXTURES / f'hf_{name}' for name in ('switch_tiny', 'switch_untied_bf16_shards', *_DECODERS)],
    'own': own,
  }


def mutated(source, folder, seed):
  """Writes a copy of a checkpoint with one to three mutations, and beside it `outside/` with what must not be read.

  Returns:
    What was done, in words.
  """
  rng = np.random.default_rng(seed)
  copy = folder / 'checkpoint'
  shutil.copytree(source, copy)
  (folder / 'outside').mkdir()
  done = []
  for _ in range(rng.choice([1, 1, 2, 3])):
    files = sorted(p for p in copy.rglob('*') if p.is_file() and not p.is_symlink() and p.suffix != '.npz')
    if not files:
      break
    described = [p for p in files if _is_described(p)]
    path = pathlib.Path(rng.choice(described if described and rng.random() < 0.6 else files))
    change = rng.choice(_FIELDS * 4 + _FILES if _is_described(path) else _FILES)
    done.append(f'{change.__name__.strip("_")} {path.relative_to(copy)}: {change(path, rng, folder / "outside") or ""}')
  if rng.random() < 0.7:
    seal(copy)
  return '; '.join(done)


def outcome(format, path):
  """Loads a checkpoint; returns `refused`, `loaded` or what went wrong, and the message."""
  try:
    interop.load(format, path)
    result = 'loaded', ''
  except ConfigError as error:
    result = _judged(error)
  except Exception as error:
    return f'traceback: {type(error).__name__}', str(error)
  try:
    loading.open_checkpoint(format, path).verify()
  except ConfigError as error:
    return result if _judged(error)[0] == 'refused' else _judged(error)
  except Exception as error:
    return f'traceback of verify: {type(error).__name__}', str(error)
  return result


def _judged(error):
  text = str(error)
  return ('refused' if '\n' not in text and len(text) < 20_000 else 'no line'), text


def _is_described(path):
  """Whether a file is, or begins with, an object with fields."""
  return path.name in ('.zarray', 'checkpoint', '_METADATA') or path.suffix in ('.json', '.safetensors')


def seal(folder):
  """Writes the true sizes of files where our own format records them, so that more than these is looked at."""
  for record in filter(pathlib.Path.is_file, folder.glob('checkpoints/*/files.json')):
    try:
      sizes = json.loads(record.read_bytes())
      files = [p for kind in ('state', 'data') for p in (record.parent / kind).rglob('*') if p.is_file()]
      if isinstance(sizes, dict):
        record.write_text(json.dumps({str(p.relative_to(record.parent)): p.stat().st_size for p in files}))
    except (ValueError, OSError):
      pass


# What may be done to any file.


def _flip(path, rng, outside):
  raw = bytearray(path.read_bytes())
  for place in rng.integers(0, max(len(raw), 1), rng.integers(1, 9)) if raw else ():
    raw[place] ^= 1 << int(rng.integers(8))
  path.write_bytes(raw)


def _overwrite(path, rng, outside):
  raw = bytearray(path.read_bytes())
  start = int(rng.integers(0, max(len(raw), 1)))
  length = int(rng.integers(1, 64))
  raw[start : start + length] = rng.bytes(length) if rng.random() < 0.5 else bytes(length)
  path.write_bytes(raw)


def _truncate(path, rng, outside):
  raw = path.read_bytes()
  path.write_bytes(raw[: int(rng.integers(0, max(len(raw), 1)))])


def _extend(path, rng, outside):
  path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 100_000))))


def _delete(path, rng, outside):
  path.unlink()


def _folder(path, rng, outside):
  path.unlink()
  path.mkdir()


def _pipe(path, rng, outside):
  path.unlink()
  os.mkfifo(path)


def _socket(path, rng, outside):
  path.unlink()
  here = pathlib.Path.cwd()
  os.chdir(path.parent)  # names of sockets are short
  try:
    with socket.socket(socket.AF_UNIX) as made:
      made.bind(path.name)
  finally:
    os.chdir(here)


def _link_outside(path, rng, outside):
  target = outside / f'file_{len(list(outside.iterdir()))}'
  path.rename(target)
  path.symlink_to(target if rng.random() < 0.5 else os.path.relpath(target, path.parent))


def _link_to_nothing(path, rng, outside):
  path.unlink()
  path.symlink_to(path.name if rng.random() < 0.5 else 'nothing')


_FILES = [
  _flip, _flip, _overwrite, _truncate, _extend, _delete, _folder, _pipe, _socket, _link_outside, _link_to_nothing,
]  # fmt: skip


# What may be done to one with fields.


def _read_fields(path):
  """Returns the object of a file, and what writes another in its place."""
  raw = path.read_bytes()
  if path.name == 'checkpoint':
    pack = lambda tree: msgpack.packb(tree, default=str, unicode_errors='replace')  # noqa: E731
    return msgpack.unpackb(raw, strict_map_key=False), lambda tree: path.write_bytes(pack(tree))
  if path.suffix == '.safetensors':
    (size,) = struct.unpack('<Q', raw[:8])
    write = lambda header: struct.pack('<Q', len(header)) + header + raw[8 + size :]  # noqa: E731
    return json.loads(raw[8 : 8 + size]), lambda tree: path.write_bytes(write(json.dumps(tree).encode()))
  return json.loads(raw), lambda tree: path.write_text(json.dumps(tree))


def _field(path, rng, outside):
  """Replaces the value of a random field, at any depth, or takes it away."""
  try:
    tree, write = _read_fields(path)
  except (ValueError, RecursionError, struct.error, msgpack.exceptions.UnpackException):
    return 'damaged already'
  node, names = tree, []
  while True:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    if not len(keys):
      break
    parent, name = node, keys[int(rng.integers(len(keys)))]
    names.append(str(name))
    node = parent[name]
    if rng.random() < 0.25:
      break
  if not names:
    return None
  value = HOSTILE[int(rng.integers(len(HOSTILE)))]
  if rng.random() < 0.1:
    del parent[name]
    value = 'removed'
  elif isinstance(parent, dict) and rng.random() < 0.15:
    parent[f'{name}{"_" * int(rng.integers(2))}9999999999'] = parent.pop(name)
    value = 'renamed'
  else:
    parent[name] = value
  if path.name == 'checkpoint':
    value = str(value)[:60] if not isinstance(value, int) or abs(value) < 2**63 else 0
  try:
    write(tree)
  except (OverflowError, ValueError, TypeError):
    return 'cannot be written'
  return f'{"/".join(names)} = {str(value)[:60]!a}'


def _text(path, rng, outside):
  """Changes what JSON itself looks like."""
  raw = path.read_bytes()
  choices = (
    lambda: raw.replace(b'{', b'{"shape": 1, "shape": 2, ', 1),
    lambda: b'[' * 100_000,
    lambda: b'{"a":' * 100_000,
    lambda: raw.replace(b'{', b'{"\xff": 1, ', 1),
    lambda: b'\xef\xbb\xbf' + raw,
    lambda: raw.decode('latin-1').encode('utf-16'),
    lambda: b'\x81\xa1a' * 100_000,
    lambda: b'\xdf\xff\xff\xff\xff' + raw,
    lambda: b'\x91' * 10_000_000,
    lambda: struct.pack('<Q', 2**60) + raw[8:],
    lambda: struct.pack('<Q', 2**64 - 1) + raw[8:],
    lambda: raw.replace(b'32', b'9' * 4000, 1),
  )
  number = int(rng.integers(len(choices)))
  path.write_bytes(choices[number]())
  return f'form {number}'


_FIELDS = [_field, _field, _field, _field, _text]
