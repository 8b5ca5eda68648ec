"""Memory as metrics: of this process, and of devices that tell."""

import pathlib
import sys

import jax
import pytest

from switch_jax.monitoring import memory


class Device:
  def __init__(self, stats):
    self._stats = stats

  def memory_stats(self):
    return self._stats


def test_a_device_that_tells():
  metrics = memory.memory_metrics(Device({'peak_bytes_in_use': 3 * 2**29, 'bytes_in_use': 7}))
  assert metrics['device_memory_peak_gib'] == 1.5


@pytest.mark.parametrize('stats', [None, {}, {'bytes_in_use': 7}])
def test_a_device_that_does_not(stats):
  assert 'device_memory_peak_gib' not in memory.memory_metrics(Device(stats))


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='/proc of Linux')
def test_resident_memory_is_that_of_this_process():
  status = dict(line.split(':', 1) for line in pathlib.Path('/proc/self/status').read_text().splitlines())
  expected = int(status['VmRSS'].split()[0]) / 2**20
  assert memory.memory_metrics(jax.devices()[0])['host_memory_gib'] == pytest.approx(expected, rel=0.1)


def test_a_system_without_proc(monkeypatch):
  def missing(self):
    raise FileNotFoundError

  monkeypatch.setattr(memory.pathlib.Path, 'read_text', missing)
  assert memory.memory_metrics(Device(None)) == {}
