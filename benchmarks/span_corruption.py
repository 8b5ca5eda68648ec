"""Span corruption beside the `t5` package's, on the same 1,000 documents of random tokens.

    python benchmarks/span_corruption.py --t5_python=/some/env/bin/python

The other Python has t5 0.9.4 and seqio 0.0.20 (`pip install --no-deps t5==0.9.4`, and what it imports). Prints, for
both implementations, rows and their lengths, and compares how many spans a row has and how long masked and kept spans
are: a chi-squared test of the two histograms, which are drawn with different random numbers. For every row inputs and
targets are put together again and must be the text. `--shortened` takes 50 documents, and compares ours with itself
where there is no other Python.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCABULARY_SIZE, SENTINELS = 32100, 100
LENGTHS = {'inputs': 512, 'targets': 114}


def make_documents(count):
  """Returns documents of 20 to 3,000 tokens."""
  import numpy as np

  random = np.random.default_rng(0)
  lengths = np.exp(random.uniform(np.log(20), np.log(3000), count)).astype(int)
  return [random.integers(3, VOCABULARY_SIZE - SENTINELS, length) for length in lengths]


def spans(row):
  """Returns the tokens of a row between sentinels, one list for each span, and one for what is before the first."""
  found = [[]]
  for token in row:
    if token >= VOCABULARY_SIZE - SENTINELS:
      found.append([])
    else:
      found[-1].append(int(token))
  return found


def measure(implementation, count):
  """Returns the statistics of one implementation on so many documents, as plain JSON."""
  import numpy as np
  import seqio
  import tensorflow as tf

  if implementation == 't5':
    from t5.data.preprocessors import span_corruption
  else:
    sys.path.insert(0, str(ROOT))
    from switch_jax.data.span_corruption import span_corruption
  documents = make_documents(count)
  features = {name: seqio.Feature(seqio.PassThroughVocabulary(VOCABULARY_SIZE, eos_id=1)) for name in LENGTHS}
  dataset = tf.data.Dataset.from_tensor_slices(tf.ragged.constant(documents, dtype=tf.int32)).map(
    lambda tokens: {'targets': tokens}
  )
  with seqio.utils.map_seed_manager(42):
    dataset = span_corruption(dataset, sequence_length=LENGTHS, output_features=features)
  result = {name: collections.Counter() for name in ('inputs', 'targets', 'spans', 'masked', 'kept')}
  restored, raw = [], collections.Counter()
  for example in dataset.as_numpy_iterator():
    kept, masked = spans(example['inputs']), spans(example['targets'])
    assert not masked[0], 'targets begin with a sentinel'
    masked = masked[1:]
    text = [token for pair in zip(kept, [*masked, []], strict=True) for part in pair for token in part]
    restored.extend(text)
    raw[len(text)] += 1
    for name in LENGTHS:
      result[name][len(example[name]) + 1] += 1  # with EOS
    if len(text) == 568:  # full rows are all alike; their spans are compared
      result['spans'][len(masked)] += 1
      result['masked'].update(map(len, masked))
      result['kept'].update(len(part) for part in kept[: len(masked)])
  everything = np.concatenate(documents)
  result['raw'] = raw
  plain = {name: {str(key): count for key, count in sorted(counter.items())} for name, counter in result.items()}
  return plain | {
    'restored': bool(np.array_equal(np.sort(restored), np.sort(everything))),
    'tokens': len(restored),
    'in_order': bool(np.array_equal(restored, everything)),
  }


def compare(ours, theirs):
  """Returns the p-value of the hypothesis that two histograms come from one distribution."""
  from scipy import stats

  keys = sorted({*ours, *theirs}, key=int)
  table = [[counts.get(key, 0) for key in keys] for counts in (ours, theirs)]
  while len(table[0]) > 1 and min(table[0][-1] + table[1][-1], 10**9) < 20:  # the rare long ones are one bin
    for row in table:
      row[-2:] = [sum(row[-2:])]
  return stats.chi2_contingency(table).pvalue if len(table[0]) > 1 else 1.0


def main():
  """Runs both and prints the comparison."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--t5_python', help='a Python with t5 0.9.4')
  parser.add_argument('--measure', choices=('t5',), help=argparse.SUPPRESS)
  parser.add_argument('--shortened', action='store_true', help='few documents')
  flags = parser.parse_args()
  count = 50 if flags.shortened else 1000
  if flags.measure:
    print('RESULT', json.dumps(measure(flags.measure, count)))
    return 0
  if not flags.t5_python and not flags.shortened:
    parser.error('give --t5_python')
  results = {'switch_jax': measure('switch_jax', count)}
  if flags.t5_python:
    command = [flags.t5_python, __file__, '--measure=t5', *(['--shortened'] if flags.shortened else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('RESULT ')]
    if not lines:
      print(done.stderr, file=sys.stderr)
      return 1
    results['t5'] = json.loads(lines[0].removeprefix('RESULT '))
  else:
    results['switch_jax again'] = results['switch_jax']
  for name, r in results.items():
    full = r['raw'].get('568', 0)
    print(f'{name}: {sum(r["raw"].values())} rows of {r["tokens"]} tokens, {full} of them full: 568 raw tokens')
    print(f'  longest inputs {max(map(int, r["inputs"]))}, targets {max(map(int, r["targets"]))}; spans {r["spans"]}')
    print(f'  inputs and targets together are the text: {r["restored"]}, in its order: {r["in_order"]}')
    for what in ('masked', 'kept'):
      total = sum(r[what].values())
      mean = sum(int(length) * count for length, count in r[what].items()) / total
      print(f'  {what} spans: {total}, mean length {mean:.3f}, longest {max(map(int, r[what]))}')
  ours, theirs = results.values()
  same = all(ours[name] == theirs[name] for name in ('raw', 'inputs', 'targets', 'spans'))
  print(f'rows, their lengths and their spans are as many: {same}')
  for what in ('masked', 'kept'):
    print(f'{what} span lengths from one distribution: p = {compare(ours[what], theirs[what]):.2f}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
