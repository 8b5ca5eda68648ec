"""The thread keeps ahead, stops when told, and hides no error."""

import itertools
import threading
import time

import pytest

from switch_jax.data.prefetch import Prefetcher
from tests.patience import HUNG


def wait_for(condition):
  """Waits until something is so; fails once nothing else can be expected."""
  deadline = time.monotonic() + HUNG
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.001)


def test_items_come_in_order_and_only_so_far_ahead():
  counter = itertools.count()
  made = []
  prefetcher = Prefetcher(lambda: made.append(next(counter)) or made[-1], depth=3)
  assert not made
  prefetcher.start()
  wait_for(lambda: len(made) == 3)
  assert [prefetcher.next() for _ in range(10)] == list(range(10))
  wait_for(lambda: len(made) == 13)
  time.sleep(0.02)
  assert len(made) == 13
  prefetcher.close()


def test_an_error_comes_in_its_turn_and_again():
  items = iter([1, 2])
  prefetcher = Prefetcher(lambda: next(items), depth=2)
  assert [prefetcher.next(), prefetcher.next()] == [1, 2]
  for _ in range(2):
    with pytest.raises(StopIteration):
      prefetcher.next()
  prefetcher.close()


def test_close_ends_the_thread_and_those_who_wait():
  release = threading.Event()
  prefetcher = Prefetcher(release.wait, depth=1)
  outcome = []

  def read():
    try:
      outcome.append(prefetcher.next())
    except RuntimeError as error:
      outcome.append(str(error))

  reader = threading.Thread(target=read)
  reader.start()
  wait_for(lambda: prefetcher._thread is not None)
  threading.Timer(0.05, release.set).start()  # the item in the making is finished, and dropped
  prefetcher.close()
  prefetcher.close()
  reader.join(HUNG)
  assert outcome == ['This data source is closed.']
  assert not prefetcher._thread.is_alive()
