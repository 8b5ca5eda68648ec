"""Plans: the real training step compiled ahead of time for TPUs that are not there."""

from switch_jax.plan.ahead_of_time import Plan, make_plan, topology_devices
from switch_jax.plan.report import check_outputs, describe, write_json

__all__ = ['Plan', 'check_outputs', 'describe', 'make_plan', 'topology_devices', 'write_json']
