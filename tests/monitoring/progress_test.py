"""A bar on a terminal, few plain lines anywhere else."""

import io

import pytest

from switch_jax.monitoring.progress import Progress, duration


class Terminal(io.StringIO):
  def isatty(self):
    return True


class Clock:
  now = 1000.0

  def __call__(self):
    return self.now


def test_plain_lines_are_few_and_the_last_is_there():
  stream, clock = io.StringIO(), Clock()
  progress = Progress(stream, clock=clock)
  progress.start(0, 10)
  for step in range(1, 11):
    clock.now += 0.7
    progress.update(step, loss=10 - step / 10, tokens_per_second=12345.6)
  progress.note('saved')
  progress.close()
  assert stream.getvalue().splitlines() == [
    'step 1 of 10 | loss 9.900 | 12,346 tokens/s',
    'step 4 of 10 | loss 9.600 | 12,346 tokens/s | 4 s left',
    'step 7 of 10 | loss 9.300 | 12,346 tokens/s | 2 s left',
    'step 10 of 10 | loss 9.000 | 12,346 tokens/s',
    'saved',
  ]


def test_a_step_without_news_makes_no_line():
  stream = io.StringIO()
  progress = Progress(stream)
  progress.start(300, 400)
  progress.update(301)
  assert stream.getvalue() == ''


def test_bar_on_a_terminal():
  stream = Terminal()
  progress = Progress(stream)
  progress.start(5, 10)
  for step in range(6, 11):
    progress.update(step, loss=2.5, tokens_per_second=1000)
  progress.note('saved step 10')
  progress.close()
  text = stream.getvalue()
  assert '10/10 steps' in text
  assert 'loss 2.500 | 1,000 tokens/s' in text
  assert 'saved step 10\n' in text


def test_other_hosts_are_silent():
  stream = Terminal()
  progress = Progress(stream, active=False)
  progress.start(0, 2)
  progress.update(1, loss=1.0)
  progress.note('note')
  progress.close()
  assert stream.getvalue() == ''


@pytest.mark.parametrize(
  ('seconds', 'words'),
  [(0.4, '0 s'), (59.4, '59 s'), (60, '1 min 0 s'), (200, '3 min 20 s'), (7500, '2 h 5 min'), (356400, '4 d 3 h')],
)
def test_duration(seconds, words):
  assert duration(seconds) == words
