"""The command line of the studies: wrong ones, runs that fail, and signals. A stand-in takes the place of the sweep."""

import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import pytest

from studies import __main__ as program
from switch_jax import launch
from tests.patience import HUNG

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['expert'], "there is no study 'expert'. Did you mean 'experts'?"),
    (['xyz'], "there is no study 'xyz'. There are learning_rates, experts, "),
    ([], 'name a study (learning_rates, experts, '),
    (['--step_times'], 'name a study (learning_rates, experts, '),
    (['experts', '--jobs=0'], '--jobs is 0; it is 1 or more'),
    (['all', '--together=-1'], '--together is -1; it is 1 or more'),
    (['experts', '--table'], '--table is about all studies; name none'),
  ],
)
def test_wrong_command_lines(capsys, arguments, message):
  with pytest.raises(SystemExit) as ended:
    program.main(arguments)
  assert ended.value.code == 2
  assert message in capsys.readouterr().err


def test_all_beside_a_name_is_all():
  assert program.parse_flags(['experts', 'all']).studies == program.parse_flags(['all']).studies == [*program.STUDIES]


@pytest.mark.parametrize(('flag', 'expected'), [('--step_times', ['huge pages', 'kept']), ('--list', [])])
def test_steps_are_timed_with_the_memory_that_training_has(monkeypatch, flag, expected):
  prepared = []
  monkeypatch.setattr(launch, 'restart_with_huge_pages', lambda: prepared.append('huge pages'))
  monkeypatch.setattr(launch, 'keep_freed_memory', lambda: prepared.append('kept'))
  monkeypatch.setattr(sys, 'argv', ['studies', 'horizon', flag, '--jobs=0'])  # and no further
  with pytest.raises(SystemExit):
    runpy.run_path(program.__file__, run_name='__main__')
  assert prepared == expected


def test_a_folder_that_cannot_be_made(capsys, tmp_path):
  (tmp_path / 'file').write_text('')
  assert program.main(['experts', f'--out={tmp_path / "file"}']) == 1
  assert (
    capsys.readouterr().err == f'error: --out={tmp_path / "file"} cannot be made (File exists); give another folder.\n'
  )


def test_a_sweep_that_fails_is_the_last_thing_said(capsys, tmp_path, monkeypatch):
  """Without a finished run nothing is shown: what is recorded of the study is of other runs."""
  monkeypatch.setattr(program, '_SWEEP', ('-c', 'raise SystemExit(1)'))
  assert program.main(['precision', 'init_scale', f'--out={tmp_path}']) == 1
  out, err = capsys.readouterr()
  assert out == ''
  last = 'error: precision, init_scale: not all runs have finished, see above; the same command tries them again.\n'
  assert err == last


def test_only_the_studies_that_were_run_are_shown():
  shown = program.make_page(names=['precision'])
  (line,) = (line for line in shown.splitlines() if '`python -m studies ' in line)
  assert line in program.make_page()
  assert 'selective precision' in line


STAND_IN = """
import signal, sys, time
def end(number, frame):
  print('told', flush=True)
  sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
print('began', flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_sweep_in_good_order(tmp_path, number, status):
  """Nothing is left running, and nothing is begun any more."""
  command = f'import sys\nfrom studies import __main__ as studies\nstudies._SWEEP = ("-c", {STAND_IN!r})\n'
  command += 'sys.exit(studies.main(sys.argv[1:]))'
  process = subprocess.Popen(
    [sys.executable, '-c', command, 'precision', 'init_scale', f'--out={tmp_path}'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert process.stdout.readline() == 'began\n'
  time.sleep(0.2)
  if number == signal.SIGINT:
    os.killpg(process.pid, number)  # as a terminal does
  else:
    process.send_signal(number)
  out, err = process.communicate(timeout=HUNG)
  assert process.returncode == status
  assert out == 'told\n'
  assert 'Traceback' not in err
  assert ('interrupted; the same command goes on where it stopped' in err) == (number == signal.SIGINT)
