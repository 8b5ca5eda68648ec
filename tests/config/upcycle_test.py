"""New routers need some noise, and a seed for it."""

import pytest

from switch_jax.config import ConfigError, UpcycleConfig


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(seed=-1), 'UpcycleConfig.seed is -1; it must be at least 0'),
    (dict(router_stddev=0.0), 'UpcycleConfig.router_stddev is 0.0; it must be greater than 0'),
  ],
)
def test_impossible_settings_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    UpcycleConfig(**fields)
