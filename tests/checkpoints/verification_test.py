"""Who sums and who verifies what, with hosts that are only pretended; `two_processes_test.py` has real ones."""

import jax
import pytest
from etils import epath

from switch_jax.checkpoints import checksums, verification


@pytest.fixture
def hosts(monkeypatch):
  """Returns a function that makes this process one of several."""

  def be(index, count=2):
    monkeypatch.setattr(jax, 'process_index', lambda: index)
    monkeypatch.setattr(jax, 'process_count', lambda: count)

  return be


@pytest.fixture
def step(tmp_path, hosts):
  """Returns the folder of a step that two hosts have written, state under Orbax's temporary name until it is whole."""
  for name in ('ocdbt.process_0/d/a', 'ocdbt.process_1/d/b', 'manifest'):
    path = tmp_path / 'state.tmp' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
  (tmp_path / 'config.json').write_text('{}')
  folder = epath.Path(tmp_path)
  for host in (0, 1):
    hosts(host)
    verification.sum_own_arrays(folder)
  (tmp_path / 'state.tmp').rename(tmp_path / 'state')
  return folder


def test_the_first_host_reads_only_what_is_not_summed(step, monkeypatch):
  read, measure = [], checksums.measure
  monkeypatch.setattr(
    checksums, 'measure', lambda folder, names, *more: (read.extend(names), measure(folder, names, *more))[1]
  )
  verification.record_step(step)
  assert sorted(read) == ['config.json', 'state/manifest']
  recorded = checksums.read_record(step / 'files.json')
  assert sorted(recorded) == sorted(name for name in checksums.list_files(step) if name != 'files.json')
  checksums.check(step, recorded)


def test_each_host_verifies_its_share_and_all_come_to_the_same_end(step, hosts, monkeypatch):
  verification.record_step(step)
  (step / 'state' / 'ocdbt.process_0' / 'd' / 'a').write_text('changed it')
  of_hosts = []
  monkeypatch.setattr(verification, 'exchange', lambda name, own, seconds: (of_hosts.append(own), [own])[1])
  found = []
  for host in (0, 1):
    hosts(host)
    found.append(str(verification.find_damage(step)))
  assert sorted(problem == 'None' for problem in found) == [False, True], 'one of them has read the file'
  monkeypatch.setattr(verification, 'exchange', lambda name, own, seconds: of_hosts)
  for host in (0, 1):
    hosts(host)
    assert str(verification.find_damage(step)).startswith('state/ocdbt.process_0/d/a has 10 bytes, not 19')
