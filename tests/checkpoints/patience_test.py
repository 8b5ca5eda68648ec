"""A word after a while, and none before."""

import time

from switch_jax.checkpoints import patience


def test_only_what_is_slow_is_said(monkeypatch, caplog):
  with patience.said_if_slow('/run/checkpoints/1'):
    pass
  assert not caplog.records
  monkeypatch.setattr(patience, 'SECONDS_TO_WARNING', 0.01)
  with patience.said_if_slow('/run/checkpoints/2'):
    while not caplog.records:
      time.sleep(0.01)
  [record] = caplog.records
  assert record.getMessage().startswith('/run/checkpoints/2 is still being written; training waits for it.')
