"""FLOPs of a run, counted from its configuration: the program's own count cannot see how many rows experts have."""

from switch_jax import gin_files
from switch_jax.config import RunConfig
from switch_jax.main import parse_flags
from switch_jax.parallel import Layout
from switch_jax.plan.flops import forward_flops


def per_target_token(arguments: list[str]) -> float:
  """Returns `of_run` for arguments of `switch_jax.main`."""
  flags, bindings = parse_flags(arguments)
  run, _ = gin_files.load_run(flags.gin_file, bindings)
  return of_run(run)


def of_run(run: RunConfig) -> float:
  """Returns the forward FLOPs for each position of the targets: both stacks, scores, router and logits.

  Dispatch moves rows by index and multiplies nothing. A step of training takes three times as many.
  """
  stacks = forward_flops(run, Layout.without_devices()).values()
  tokens = run.data.batch_size * run.data.feature_lengths['targets']
  return sum(stack.layers + stack.logits for stack in stacks) / tokens
