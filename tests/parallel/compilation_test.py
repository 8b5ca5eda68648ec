"""No process runs what another has still to compile."""

import jax
import jax.numpy as jnp

from switch_jax.parallel import compilation
from switch_jax.parallel.compilation import compiled_by_all


def test_of_one_process_nothing_changes():
  jitted = jax.jit(jnp.add)
  assert compiled_by_all(jitted, 'sum') is jitted


def test_all_are_waited_for_after_compiling_and_before_running(monkeypatch):
  seen = []

  class Lowered:
    def compile(self):
      seen.append('compiled')

  class Jitted:
    def lower(self, *arguments):
      return Lowered()

    def __call__(self, state, batch):
      seen.append('ran')
      return state + batch.sum()

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(compilation, 'exchange', lambda name, value, seconds: seen.append(name))
  step = compiled_by_all(Jitted(), 'step')
  assert [float(step(1, jnp.ones(length))) for length in (3, 3, 4, 3)] == [4, 4, 5, 4]
  first = ['compiled', 'compiled step', 'ran']
  assert seen == [*first, 'ran', *first, 'ran'], 'once for each shape'
