"""Process 0 holds the claim for all, and a refusal is everybody's."""

import jax
import pytest

from switch_jax.config import ConfigError
from switch_jax.folders.claim import Claim
from switch_jax.parallel import ownership
from switch_jax.parallel.ownership import owned


def test_the_claim_is_held_inside_and_let_go_however_it_ends(tmp_path):
  place = tmp_path / 'owner.json'

  def use():
    with owned(place, 'MODEL_DIR x', 'go away') as claim:
      claim.check()
      with pytest.raises(ConfigError, match='MODEL_DIR x belongs to process'), owned(place, 'MODEL_DIR x', 'go away'):
        raise AssertionError
      assert place.exists()
      raise KeyError

  with pytest.raises(KeyError):
    use()
  assert not place.exists()


def test_another_process_than_0_hears_of_it(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  monkeypatch.setattr(Claim, 'take', None)
  with owned(tmp_path / 'owner.json', 'MODEL_DIR x', 'go away') as claim:
    claim.check()
  monkeypatch.setattr(ownership, 'exchange', lambda name, value: ['it belongs to another', value])
  with pytest.raises(ConfigError, match='it belongs to another'), owned(tmp_path / 'owner.json', 'MODEL_DIR x', ''):
    raise AssertionError


def test_if_the_others_cannot_be_reached_the_claim_is_let_go(tmp_path, monkeypatch):
  def fail(name, value):
    raise ConfigError('process 1 is missing')

  monkeypatch.setattr(ownership, 'exchange', fail)
  with pytest.raises(ConfigError, match='is missing'), owned(tmp_path / 'owner.json', 'MODEL_DIR x', ''):
    raise AssertionError
  assert not list(tmp_path.iterdir())
