"""The README's code for notebooks runs as it stands there."""

import pathlib
import re
import threading

README = (pathlib.Path(__file__).resolve().parents[1] / 'README.md').read_text(encoding='utf-8')


def test_training_from_python(tmp_path, monkeypatch, capsys):
  (code,) = (block for block in re.findall(r'```python\n(.*?)```', README, re.S) if 'training.train(run)' in block)
  monkeypatch.chdir(tmp_path)
  before = set(threading.enumerate())
  exec(compile(code, 'README.md', 'exec'), {})
  assert set(threading.enumerate()) == before
  said, shape, _ = capsys.readouterr().out.splitlines()
  reason, step, loss, held_out = said.split()
  assert (reason, step) == ('finished', '20')
  assert 0 < float(held_out) < 7  # 8.2 before training
  assert float(loss) < 7
  assert shape == '(4, 64, 128)'
  assert (tmp_path / 'runs' / 'notebook' / 'checkpoints' / '20').is_dir()
