"""The command line of reports."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from switch_jax.report.__main__ import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_report_of_whole_and_broken_runs(write_run, tmp_path, capsys):
  write_run('runs/a', experts=4)
  torn = write_run('runs/b', seed=1) / 'train' / 'metrics.jsonl'
  torn.write_text(torn.read_text()[:-5])
  (tmp_path / 'empty').mkdir()
  out = tmp_path / 'report.html'
  assert main([str(tmp_path / 'runs'), str(tmp_path / 'empty'), f'--out={out}']) == 0
  printed = capsys.readouterr()
  assert printed.err.splitlines() == [
    f'note: {tmp_path}/empty holds no run: it has no checkpoints and no train and no eval.',
    'note: b: the last line of train/metrics.jsonl is torn (killed while writing, or still running) and left out.',
  ]
  assert '1 of the runs have experts that were not measured; --experts does it.' in printed.out
  page = out.read_text()
  assert 'Not everything could be read' in page
  assert page.count('is torn (killed while writing') == 1


def error_of(capsys, *arguments):
  assert main([str(a) for a in arguments]) == 1
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  return error


def test_no_usable_run_is_an_error(tmp_path, capsys):
  (tmp_path / 'runs' / 'a' / 'train').mkdir(parents=True)
  error = error_of(capsys, tmp_path / 'runs', f'--out={tmp_path}/report.html')
  assert 'there is no run to report on' in error
  assert 'a is left out: it has no metrics yet.' in error
  assert not (tmp_path / 'report.html').exists()


def test_a_folder_that_is_not_there(write_run, tmp_path, capsys):
  write_run('quickstart')
  assert "Did you mean 'quickstart'?" in error_of(capsys, tmp_path / 'quickstrat', f'--out={tmp_path}/r.html')


def test_a_report_that_cannot_be_written_is_refused_before_any_work(write_run, tmp_path, capsys, monkeypatch):
  folder = write_run('a')
  monkeypatch.setattr('switch_jax.report.runs.read_run', None)
  assert 'no/such does not exist' in error_of(capsys, folder, f'--out={tmp_path}/no/such/report.html')
  assert 'which is a folder; give a file' in error_of(capsys, folder, f'--out={tmp_path}')
  assert 'which cannot be written' in error_of(capsys, folder, '--out=/proc/report.html')
  (tmp_path / 'file').write_text('')
  assert 'does not exist' in error_of(capsys, folder, f'--out={tmp_path}/file/report.html')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'file']


@pytest.mark.skipif(os.geteuid() == 0, reason='rights do not bind the superuser')
def test_a_read_only_file_is_refused(write_run, tmp_path, capsys):
  folder, out = write_run('a'), tmp_path / 'report.html'
  out.write_text('mine')
  out.chmod(0o400)
  assert 'which cannot be written' in error_of(capsys, folder, f'--out={out}')


def test_a_misspelt_flag(write_run, capsys):
  assert 'unrecognized arguments: --ot=x; see --help.' in error_of(capsys, write_run('a'), '--ot=x')


def test_neither_jax_nor_tensorflow_is_loaded(write_run, tmp_path):
  for number in range(12):
    write_run(f'runs/{number % 4}_seed{number // 4}', number // 4, experts=2 + number % 4)
  code = (
    'import json, sys; from switch_jax.report.__main__ import main; status = main(sys.argv[1:]); '
    "print(json.dumps([status, sorted({'jax', 'tensorflow', 'flax', 'orbax'} & set(sys.modules))]))"
  )
  command = [sys.executable, '-c', code, str(tmp_path / 'runs'), f'--out={tmp_path}/report.html']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
  assert done.stderr == ''
