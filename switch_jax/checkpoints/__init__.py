"""Checkpoints: `MODEL_DIR/checkpoints/<step>/`, the only room that knows Orbax."""

from switch_jax.checkpoints.store import CheckpointError, CheckpointStore

__all__ = ['CheckpointError', 'CheckpointStore']
