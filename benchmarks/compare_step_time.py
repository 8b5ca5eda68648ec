"""Our training step beside Hugging Face's, same sizes, in alternating steps.

  python benchmarks/compare_step_time.py --peer_python PATH/bin/python --experts 16 64 --steps 8

Prints what the machine can do first (`machine_rates.py`). `--peer_python` is the interpreter of an environment with
`torch==2.13.0 transformers==5.23.0`. Both processes inherit this environment's variables, so settings of malloc in
front of the command (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_ARENA_MAX=1 ...`) hold for both.
Each ratio is ours / theirs of two neighbouring steps; medians are printed.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

_HERE = pathlib.Path(__file__).parent


class Worker:
  """A process that makes one step when asked."""

  def __init__(self, command: list[str], environment: dict[str, str] | None = None):
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    while (line := self._process.stdout.readline()) != 'ready\n':
      if not line:
        raise SystemExit(f'error: {" ".join(command)} ended before its first step')

  def step(self) -> float:
    """Makes a step; returns its seconds."""
    self._process.stdin.write('step\n')
    self._process.stdin.flush()
    return float(self._process.stdout.readline())

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def main() -> None:
  """Times both and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--peer_python', required=True)
  parser.add_argument('--experts', type=int, nargs='+', default=[16, 64])
  parser.add_argument('--steps', type=int, default=8)
  parser.add_argument('--json')
  arguments = parser.parse_args()
  results = []
  subprocess.run([sys.executable, str(_HERE / 'machine_rates.py')], check=True)
  print(f'{"experts":>8}{"ours s":>10}{"peer s":>10}{"ratio":>8}{"min":>8}{"max":>8}')
  for experts in arguments.experts:
    options = ['--experts', str(experts)]
    ours = Worker([sys.executable, str(_HERE / 'step_time.py'), '--serve', *options])
    peer = Worker([arguments.peer_python, str(_HERE / 'huggingface_step_time.py'), *options])
    pairs = [(ours.step(), peer.step()) for _ in range(arguments.steps)]
    ours.close()
    peer.close()
    ratios = [a / b for a, b in pairs]
    a, b, ratio = (statistics.median(values) for values in (*zip(*pairs, strict=True), ratios))
    print(f'{experts:>8}{a:>10.3f}{b:>10.3f}{ratio:>8.2f}{min(ratios):>8.2f}{max(ratios):>8.2f}', flush=True)
    results.append({'experts': experts, 'ours_s': a, 'peer_s': b, 'ratio': ratio, 'pairs': pairs})
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2))


if __name__ == '__main__':
  main()
