"""Checkpoints: `MODEL_DIR/checkpoints/<step>/`, the only room that knows Orbax.

Importing this package is cheap: JAX and Orbax come in with the first use of a name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from switch_jax.checkpoints.store import CheckpointError, CheckpointStore

__all__ = ['CheckpointError', 'CheckpointStore']


def __getattr__(name: str) -> Any:
  """Imports what needs JAX on first use."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from switch_jax.checkpoints import store

  return getattr(store, name)
