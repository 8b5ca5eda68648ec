"""Short texts train as they are, and the ends of their lines change no loss; `benchmarks/short_texts.py` has more."""

import jax
import numpy as np

from benchmarks import short_texts
from switch_jax import config, data
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step


def test_the_ends_of_lines_change_no_loss(tmp_path):
  run = short_texts.run_of('unused', 'unused', steps=3)
  layout = Layout(make_mesh(config.MeshConfig(data=1, expert=1, model=1), None, jax.devices()[:1]))
  rows, plan = layout.batch_sharding(), plan_state(run, layout)
  step = make_train_step(run, layout, plan)
  text, found = short_texts.make_text(20_000, seed=3), []
  for name, end in (('n', '\n'), ('rn', '\r\n'), ('r', '\r')):
    (tmp_path / name).mkdir()
    path = tmp_path / name / 'a.txt'
    path.write_bytes(text.replace('\n', end).encode())
    here = short_texts.run_of(path, 'unused', steps=3).data
    source, state, losses = data.open_training(here, 0, rows), init_state(run, layout, plan), []
    for _ in range(3):
      state, metrics = step(state, next(source))
      losses.append(float(metrics['loss']))
    source.close()
    held_out = data.open_evaluation(here, rows, 4).on_host
    found.append((losses, source.fingerprint, jax.tree.map(np.ndarray.tolist, held_out)))
  assert len(set(found[0][0])) == 3
  assert found[0] == found[1] == found[2]


def test_short_texts_are_opened(capsys):
  assert short_texts.main(['--sizes', '20000', '100000', '--files=1', '--steps=0']) == 0
  first, _, last = capsys.readouterr().out.splitlines()
  assert first.startswith('20000_0.txt: 20,000 bytes of text in 1 file(s), cut into pieces of at most 156 bytes; held')
  assert last == '2 files, 0 refused'
