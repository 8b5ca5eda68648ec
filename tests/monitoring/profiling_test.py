"""Which steps are traced, and that a trace always ends."""

import jax
import pytest

from switch_jax.monitoring.profiling import Profiler


@pytest.fixture
def traces(monkeypatch):
  """Returns a list that grows by what the profiler is asked to do."""
  done = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda directory: done.append(directory))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: done.append('stop'))
  return done


def traced(windows, traces, first_step=0, steps=30):
  """Returns the steps during which a trace ran."""
  profiler, found = Profiler(windows, 'folder', first_step), []
  for step in range(first_step + 1, steps + 1):
    profiler.before(step)
    if traces and traces[-1] == 'folder':
      found.append(step)
    profiler.after(step, {})
  profiler.close()
  assert traces.count('folder') == traces.count('stop')
  return found


@pytest.mark.parametrize(
  ('windows', 'first_step', 'expected'),
  [
    (False, 0, []),
    ([], 0, []),
    (True, 0, [6, 7, 8, 9, 10]),
    (True, 10, [16, 17, 18, 19, 20]),
    ([(3, 4), (10, 12)], 0, [3, 4, 10, 11, 12]),
    ([(3, 4), (10, 12)], 4, [10, 11, 12]),
    ([(3, 8)], 5, [6, 7, 8]),
    ([(29, 40)], 0, [29, 30]),
  ],
)
def test_windows(windows, first_step, expected, traces):
  assert traced(windows, traces, first_step) == expected


def test_a_step_is_done_before_its_trace_ends(traces, monkeypatch):
  monkeypatch.setattr(jax, 'block_until_ready', traces.append)
  profiler = Profiler([(1, 1)], 'folder', 0)
  profiler.before(1)
  profiler.after(1, 'result')
  profiler.close()
  assert traces == ['folder', 'result', 'stop']
