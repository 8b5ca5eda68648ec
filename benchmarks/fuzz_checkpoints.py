"""Loads hundreds of damaged and hostile checkpoints of each format, and counts how that ends.

  python -m benchmarks.fuzz_checkpoints --count=300

Each is loaded in a process of its own kind, which is watched: time, memory beyond the checkpoint's own size, files
opened outside its folder. The last column of the table, whatever is neither a checkpoint nor one line, must be 0.
"""

import argparse
import collections
import concurrent.futures
import ctypes
import json
import os
import pathlib
import resource
import select
import shutil
import subprocess
import sys
import tempfile

from tests.interop import fuzz

_SECONDS = 60
_MEMORY = 2**30
_IN_OPEN = 0x20


def _status(name):
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(name):
      return 1024 * int(line.split()[1])
  return 0


def _opened(libc, watch):
  """Whether anything was opened in the watched folder since the last call."""
  return bool(select.select([watch], [], [], 0)[0] and os.read(watch, 65536))


def work():
  """Answers cases from standard input, a line each, until it ends."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  libc = ctypes.CDLL(None, use_errno=True)
  first = True
  for line in sys.stdin:
    case = json.loads(line)
    folder = pathlib.Path(case['folder'])
    if first:  # what the first load imports is no memory of a checkpoint
      fuzz.outcome(case['format'], case['source'])
      resource.setrlimit(resource.RLIMIT_AS, (_status('VmSize') + 16 * _MEMORY,) * 2)
      first = False
    watch = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(watch, os.fsencode(folder / 'outside'), _IN_OPEN)
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    before = _status('VmRSS')
    result, message = fuzz.outcome(case['format'], folder / 'checkpoint')
    memory = _status('VmHWM') - before
    if _opened(libc, watch):
      result = 'read outside the folder'
    elif memory > case['size'] + _MEMORY:
      result = f'memory: {memory / 1e9:.2f} GB'
    os.close(watch)
    answers.write(json.dumps([result, message[:1000], memory]) + '\n')
    answers.flush()


class _Worker:
  """A process that loads; it is started anew after it died or hung."""

  def __init__(self):
    self.process = None

  def load(self, case):
    if self.process is None:
      self.process = subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.fuzz_checkpoints', '--work'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
      )  # fmt: skip
    seconds = _SECONDS if self.process.poll() is None else 0
    self.process.stdin.write(json.dumps(case) + '\n')
    self.process.stdin.flush()
    ready = select.select([self.process.stdout], [], [], seconds)[0]
    answer = self.process.stdout.readline() if ready else ''
    if answer:
      return json.loads(answer)
    self.close()
    return ['hang' if not ready else 'abort', '', 0]

  def close(self):
    if self.process is not None:
      self.process.kill()
      self.process.wait()
      self.process = None


def _fuzz(kind, sources, seeds, folder):
  """Loads mutations of one kind; returns seed, what was done, outcome, message and memory of each."""
  worker, results = _Worker(), []
  for seed in seeds:
    source = sources[seed % len(sources)]
    place = folder / f'{kind}_{seed}'
    place.mkdir()
    done = fuzz.mutated(source, place, seed)
    size = sum(p.stat().st_size for p in place.rglob('*') if p.is_file())
    case = {'folder': str(place), 'format': fuzz.FORMATS[kind], 'source': str(source), 'size': size}
    results.append((seed, done, *worker.load(case)))
    shutil.rmtree(place)
  worker.close()
  return results


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--count', type=int, default=300, help='checkpoints of each kind')
  parser.add_argument('--first', type=int, default=0, help='the first seed')
  parser.add_argument('--kinds', default=','.join(fuzz.KINDS))
  parser.add_argument('--processes', type=int, default=1, help='at a time')
  parser.add_argument('--messages', help='a file to write every case to, with its message')
  parser.add_argument('--work', action='store_true', help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.work:
    return work()
  rows, bad, log = [], [], []
  seeds = range(flags.first, flags.first + flags.count)
  with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(flags.processes) as pool:
    sources = fuzz.write_sources(pathlib.Path(name))
    for kind in flags.kinds.split(','):
      parts = [
        pool.submit(_fuzz, kind, sources[kind], seeds[i :: flags.processes], pathlib.Path(name))
        for i in range(flags.processes)
      ]
      results = [result for part in parts for result in part.result()]
      counts = collections.Counter(result[2] for result in results)
      other = len(results) - counts['refused'] - counts['loaded']
      memory = max(result[4] for result in results)
      rows.append((kind, len(results), counts['refused'], counts['loaded'], f'{memory / 1e6:.0f} MB', other))
      bad += [(kind, *result) for result in results if result[2] not in ('refused', 'loaded')]
      log += [(kind, *result) for result in results]
      print(f'{kind}: {dict(counts)}', file=sys.stderr, flush=True)
  print(
    '| kind | checkpoints | refused in one line | loaded | most memory | anything else |\n|---|---|---|---|---|---|'
  )
  for row in rows:
    print('| ' + ' | '.join(map(str, row)) + ' |')
  for kind, seed, done, result, message, _ in bad:
    print(f'{kind} {seed}: {result}: {message[:300]}\n  {done}')
  if flags.messages:
    lines = (f'{kind} {seed} {result} [{done}] {message}\n' for kind, seed, done, result, message, _ in log)
    pathlib.Path(flags.messages).write_text(''.join(lines), errors='backslashreplace')
  return int(bool(bad))


if __name__ == '__main__':
  sys.exit(main())
