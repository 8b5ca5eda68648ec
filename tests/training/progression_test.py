"""What happens around the steps, in which order; of stand-ins of models and of all that is opened."""

import os
import signal
import types

import pytest

from switch_jax.monitoring.loss_watch import DivergenceError
from switch_jax.training.progression import Member, run_to_end


class Models:
  """Counts its steps; the metrics of step 3 of the model `bad` are no numbers."""

  def __init__(self, size, log):
    self.size, self.log, self.step = size, log, 0

  def advance(self):
    self.step += 1
    self.log.append(f'step {self.step}')
    return [{'step': self.step, 'number': number} for number in range(self.size)]

  def state(self, number):
    return types.SimpleNamespace(params=None, number=number)

  def evaluate(self):
    self.log.append('evaluate')
    return [types.SimpleNamespace(metrics={'cross_ent_loss_text': 1.0 + n}, number=n) for n in range(self.size)]


def make_member(number, log, bad=None, first_step=0, **run):
  """Returns a member whose deeds go to a log, all but its clocks."""

  def add(step, metrics):
    assert (metrics['step'], metrics['number']) == (step, number)
    log.append(f'{number} reports {step}')
    if number == bad and step == 3:
      raise DivergenceError('no number', step)

  quiet = lambda *arguments: None  # noqa: E731
  opened = types.SimpleNamespace(
    run=types.SimpleNamespace(
      **{'train_steps': 5, 'eval_period': None} | run,
      checkpoint=types.SimpleNamespace(period=4, keep_best=None, best_metric='cross_ent_loss_text'),
    ),
    first_step=first_step,
    evaluated=set(),
    task_metrics=None,
    progress=types.SimpleNamespace(note=quiet, start=quiet, close=quiet),
    profiler=types.SimpleNamespace(before=quiet, after=quiet),
    reporter=types.SimpleNamespace(add=add, flush=quiet, stop_clock=quiet, resume_clock=quiet, target_tokens=0),
    store=types.SimpleNamespace(
      save=lambda step, state, *_: log.append(f'{number} saves {step} of {state.number}'), wait=quiet, scores={}
    ),
    source=types.SimpleNamespace(save_position=None),
    eval_files=types.SimpleNamespace(
      write=lambda step, metrics: log.append(f'{number} has {metrics["cross_ent_loss_text"]} at {step}')
    ),
    are_finite=lambda params: True,
    record={},
    flush=lambda: log.append(f'{number} is flushed'),
  )
  return Member(number, opened, types.SimpleNamespace(check=quiet))


def run(size, **fields):
  log = []
  members = [make_member(number, log, **fields) for number in range(size)]
  return run_to_end(members, Models(size, log)), members, log


def test_the_order_of_a_run_alone():
  reason, _, log = run(1, eval_period=2, train_steps=3)
  assert reason == 'finished'
  assert log == [
    'evaluate', '0 has 1.0 at 0', 'step 1', '0 reports 1', 'step 2', '0 reports 2', 'evaluate', '0 has 1.0 at 2',
    'step 3', '0 reports 3', '0 saves 3 of 0', 'evaluate', '0 has 1.0 at 3', '0 is flushed',
  ]  # fmt: skip


def test_one_that_diverges_ends_alone():
  reason, members, log = run(3, bad=1)
  assert reason == 'finished'
  assert [member.step for member in members] == [5, 3, 5]
  assert [str(member.error) for member in members] == ['None', 'no number', 'None']
  after = log[log.index('step 4') :]
  assert after == [
    'step 4', '0 reports 4', '2 reports 4', '0 saves 4 of 0', '2 saves 4 of 2',
    'step 5', '0 reports 5', '2 reports 5', '0 saves 5 of 0', '2 saves 5 of 2',
    'evaluate', '0 has 1.0 at 5', '2 has 3.0 at 5', '0 is flushed', '2 is flushed',
  ]  # fmt: skip


def test_nothing_goes_on_when_all_have_diverged():
  _, members, log = run(1, bad=0)
  assert members[0].error.began == 3
  assert log[-1] == '0 reports 3'


def test_a_signal_saves_and_does_not_evaluate():
  log = []
  member = make_member(0, log, eval_period=1)
  member.opened.profiler.after = lambda step, metrics: step == 2 and os.kill(os.getpid(), signal.SIGTERM)
  assert run_to_end([member], Models(1, log)) == 'SIGTERM'
  assert log[-3:] == ['0 reports 2', '0 saves 2 of 0', '0 is flushed']


@pytest.mark.parametrize(('evaluated', 'expected'), [((), ['evaluate', '0 has 1.0 at 2']), ((2,), [])])
def test_an_evaluation_that_is_missing_is_made_first(evaluated, expected):
  log = []
  member = make_member(0, log, first_step=2, eval_period=2, train_steps=2)
  member.opened.evaluated.update(evaluated)
  run_to_end([member], Models(1, log))
  assert log[:-1] == expected
