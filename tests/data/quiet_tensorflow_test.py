"""What native code writes is kept from the terminal, unless something fails; threads are few."""

import os

import pytest

from switch_jax.data import quiet_tensorflow


def test_the_descriptor_is_quiet_and_then_open_again(capfd):
  with quiet_tensorflow._quiet_stderr():
    os.write(2, b'noise of an import')
  os.write(2, b'heard')
  assert capfd.readouterr().err == 'heard'


def test_what_was_written_is_shown_after_a_failure(capfd):
  def fail():
    with quiet_tensorflow._quiet_stderr():
      os.write(2, b'the reason')
      raise ImportError('broken')

  with pytest.raises(ImportError, match='broken'):
    fail()
  assert capfd.readouterr().err == 'the reason'


@pytest.mark.parametrize(('cores', 'threads'), [(1, 1), (5, 5), (200, quiet_tensorflow.MAX_THREADS)])
def test_a_thread_for_each_core_up_to_a_bound(monkeypatch, cores, threads):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)), raising=False)
  assert quiet_tensorflow.num_threads() == threads


def test_the_pools_are_bounded():
  threading = quiet_tensorflow.tf.config.threading
  bound = quiet_tensorflow.num_threads()
  assert (threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()) == (bound, bound)
