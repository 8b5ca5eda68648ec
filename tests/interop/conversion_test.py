"""Conversions are whole or not there: continued after a kill, refused by name, damage found before anything is left."""

import os
import shutil
import signal
import subprocess
import sys

import msgpack
import numpy as np
import pytest

from switch_jax import convert, interop
from switch_jax.config import ConfigError
from switch_jax.interop import conversion, zarr_files
from switch_jax.interop.loading import open_checkpoint
from tests.interop.own_checkpoints import MODELS, assert_same, refused, run, save_own, state_of


def test_a_killed_conversion_continues(tmp_path, sparse_model, random_params, write_t5x, flatten):
  """Killed for good in the middle: the target is not there; the same command ends with the same bytes."""
  source = write_t5x(tmp_path / 'c', random_params(sparse_model))
  script = (
    'import os, signal, sys\n'
    'from switch_jax import convert\n'
    'from switch_jax.interop import t5x_writer\n'
    'original, calls = t5x_writer.T5xWriter.write, []\n'
    'def write(self, *args):\n'
    '  calls.append(1)\n'
    '  if len(calls) == 30: os.kill(os.getpid(), signal.SIGKILL)\n'
    '  original(self, *args)\n'
    't5x_writer.T5xWriter.write = write\n'
    'convert.main(sys.argv[1:])\n'
  )
  arguments = [f'--from=t5x:{source}', f'--to=t5x:{tmp_path}/out']
  killed = subprocess.run([sys.executable, '-c', script, *arguments], capture_output=True, cwd=os.getcwd())
  assert killed.returncode == -signal.SIGKILL
  assert not (tmp_path / 'out').exists()
  assert (tmp_path / 'out.converting').is_dir()
  opened = open_checkpoint('t5x', str(source)), interop.load_config('t5x', source)
  with pytest.raises(ConfigError, match='the beginning of another conversion'):
    conversion.convert(
      tmp_path / 'out', lambda folder: conversion.make_writer('t5x', folder, *opened, **OPTIONS), {'from': 'x'}
    )
  assert convert.main(arguments) == 0
  assert not (tmp_path / 'out.converting').exists()
  before, after = (flatten(interop.load('t5x', path)[1]) for path in (source, tmp_path / 'out'))
  assert all(np.array_equal(before[name], after[name]) for name in before)


OPTIONS = dict(dtype='float32', record={}, max_shard_bytes=10**9)


def test_pieces_smaller_than_a_tensor(tmp_path, monkeypatch):
  """Rows are written and read in pieces; with tiny ones every tensor takes several."""
  monkeypatch.setattr(zarr_files, 'PIECE_BYTES', 64)
  save_own(tmp_path / 'ours', MODELS['xxl'])
  assert run(f'switch_jax:{tmp_path}/ours', f't5x:{tmp_path}/theirs') == 0
  assert len(list((tmp_path / 'theirs' / 'target.token_embedder.embedding').iterdir())) > 5
  assert run(f't5x:{tmp_path}/theirs', f'switch_jax:{tmp_path}/again') == 0
  assert_same(state_of(tmp_path / 'again'), state_of(tmp_path / 'ours'))


# What users get wrong: refused by name, and nothing is written.


@pytest.fixture
def source(tmp_path, sparse_model, random_params, write_t5x):
  return write_t5x(tmp_path / 'c', random_params(sparse_model))


def test_existing_target(tmp_path, source, capsys):
  (tmp_path / 'out').mkdir()
  refused(capsys, tmp_path, f't5x:{source}', f'switch_jax:{tmp_path}/out', 'exists; nothing is overwritten')


def damage_chunk(folder):
  path = folder / 'target.encoder.layers_1.mlp.expert.wi.kernel' / '0.0.0'
  path.write_bytes(path.read_bytes()[:-9])


def damage_index(folder):
  (folder / 'checkpoint').write_bytes((folder / 'checkpoint').read_bytes()[:50])


def lose_chunk(folder):
  (folder / 'target.encoder.layers_1.mlp.expert.wi.kernel' / '0.0.0').unlink()


def lose_tensor(folder):
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes(), strict_map_key=False)
  del index['optimizer']['target']['encoder']['layers_1']['mlp']['expert']['wi']
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))


def add_tensor(folder):
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes(), strict_map_key=False)
  target = index['optimizer']['target']
  target['encoder']['stranger'] = target['encoder']['encoder_norm']
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))


def integer_tensor(folder):
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes(), strict_map_key=False)
  index['optimizer']['target']['encoder']['encoder_norm']['scale']['dtype'] = 'int8'
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (damage_chunk, 'target/encoder/layers_1/mlp/expert/wi/kernel'),
    (lose_chunk, '0.0.0 is missing'),
    (damage_index, 'is not a whole msgpack file'),
    (lose_tensor, 'lacks parameters encoder/layers_1/mlp/expert/wi/kernel'),
    (add_tensor, 'has the unknown parameters encoder/stranger/scale'),
    (integer_tensor, 'encoder/encoder_norm/scale'),
  ],
)
def test_damaged_t5x(tmp_path, source, capsys, damage, message):
  damage(source)
  refused(capsys, tmp_path, f't5x:{source}', f'switch_jax:{tmp_path}/out', message)


def test_truncated_safetensors(tmp_path, checkpoints, capsys):
  folder = shutil.copytree(checkpoints / 'hf_switch_tiny', tmp_path / 'h')
  weights = folder / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-100])
  refused(capsys, tmp_path, f'huggingface:{folder}', f't5x:{tmp_path}/out', 'not a whole safetensors file')


def test_damage_that_only_reading_shows(tmp_path, source, capsys):
  """The right length and a wrong byte in the middle: found while converting, and what was written is removed."""
  path = source / 'target.token_embedder.embedding' / '0.0'
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0xFF
  path.write_bytes(bytes(content))
  refused(capsys, tmp_path, f't5x:{source}', f't5x:{tmp_path}/out', 'token_embedder/embedding cannot be read')
