"""`python -m switch_jax.checkpoints verify`, and the command that damages checkpoints."""

import json
import pathlib
import runpy
import subprocess
import sys
import types

import pytest

from switch_jax.checkpoints.__main__ import main

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
bit_flips = types.SimpleNamespace(**runpy.run_path(str(ROOT / 'benchmarks' / 'bit_flips.py')))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('verify') / 'run'
  bit_flips.make_checkpoints(folder)
  return folder


def verify(capsys, path):
  status = main(['verify', str(path)])
  return status, capsys.readouterr()


def test_whole_steps(run, capsys):
  status, said = verify(capsys, run)
  assert status == 0
  first, second = said.out.splitlines()
  assert first.startswith('step 10: whole (')
  assert second.startswith('step 20: whole (')
  assert ' files, ' in second


def test_damage_is_named_and_the_rest_is_verified(run, capsys):
  file = max((run / 'checkpoints' / '10').rglob('*'), key=lambda p: p.stat().st_size if p.is_file() else 0)
  before = file.read_bytes()
  file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
  status, said = verify(capsys, run)
  assert status == 1
  name = file.relative_to(run / 'checkpoints' / '10')
  first, second = said.out.splitlines()
  assert first == f'step 10: damaged: {name} has other bytes than were written (its checksum differs)'
  assert second.startswith('step 20: whole')
  assert verify(capsys, run / 'checkpoints' / '10')[0] == 1
  assert verify(capsys, run / 'checkpoints' / '20')[0] == 0
  file.write_bytes(before)


def test_steps_of_older_versions_and_half_written_ones(tmp_path, capsys):
  for step in (1, 2):
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  (tmp_path / 'checkpoints' / '1' / 'a').write_text('abc')
  (tmp_path / 'checkpoints' / '1' / 'files.json').write_text(json.dumps({'a': 3}))
  status, said = verify(capsys, tmp_path)
  assert status == 1
  assert said.out.splitlines() == [
    'step 1: sizes are right (1 files, 0.0 MB); an older version wrote it, without checksums',
    'step 2: not complete: there is no files.json',
  ]


@pytest.mark.parametrize(
  ('arguments', 'message'), [(['verify', 'nowhere'], 'no checkpoint in nowhere'), ([], 'verify')]
)
def test_errors(arguments, message, capsys):
  assert main(arguments) == 1
  assert message in capsys.readouterr().err


def test_no_jax(run):
  code = 'import sys; from switch_jax.checkpoints.__main__ import main; status = main(sys.argv[1:]); '
  code += "print(status, {'jax', 'tensorflow', 'orbax'} & set(sys.modules))"
  done = subprocess.run([sys.executable, '-c', code, 'verify', str(run)], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.splitlines()[-1] == '0 set()', done.stderr


@pytest.mark.parametrize('kind', ['bit', 'zeros'])
def test_damage_in_random_places_is_found(run, kind):
  assert bit_flips.count_refused(run, 10, kind, seed=1) == 10
