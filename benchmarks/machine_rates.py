"""What the machine at hand can do: its rate of large products and of copying, to print beside every time.

python benchmarks/machine_rates.py
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_SIDE, _FLOATS = 2048, 64 * 2**20


class Rates(NamedTuple):
  """Attributes: FLOPs a second of large float32 products; bytes a second read and written by a large copy."""

  flops: float
  bytes: float

  def __str__(self) -> str:
    return f'{self.flops / 1e9:.0f} GFLOP/s in large products, {self.bytes / 1e9:.0f} GB/s copying (read and written)'


def median_seconds(function: Callable[[jax.Array], jax.Array], x: jax.Array, runs: int = 9) -> float:
  """Returns the median time of the jitted function."""
  function, seconds = jax.jit(function), []
  for _ in range(runs + 2):
    began = time.perf_counter()
    function(x).block_until_ready()
    seconds.append(time.perf_counter() - began)
  return statistics.median(seconds[2:])


def measure() -> Rates:
  """Measures both, on the first device of JAX, in a second or two."""
  product = median_seconds(lambda x: x @ x, jnp.ones((_SIDE, _SIDE)))
  copy = median_seconds(lambda x: x + 1, jnp.ones(_FLOATS))
  return Rates(2 * _SIDE**3 / product, 2 * 4 * _FLOATS / copy)


def main() -> None:
  """Measures and prints."""
  argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
  print(measure())


if __name__ == '__main__':
  main()
