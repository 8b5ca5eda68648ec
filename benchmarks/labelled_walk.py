"""The five commands of docs/your_labels.md, each as it is printed there, from empty folders with 300 labelled texts.

    python benchmarks/labelled_walk.py --seeds 0 1 2

Every seed is a folder of its own with other texts and other initial parameters. The sentences come from templates that
all classes share, with words of the class that have the same lengths in each, so that only the words tell the classes
apart; 300 more of them, which training never sees, are in `new.csv`. After each: a row of accuracies beside the
majority class and beside what a text's length alone says. With `--text_files` the pre-training is that of
docs/your_text.md, once for all seeds. With `--huggingface`, the Python of an environment that has torch and
transformers, the exported folders are used there, and equal predictions are counted.
"""

import argparse
import collections
import csv
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import time

import runs

from switch_jax.folders.model_dir import ModelDir

TASK, ROWS = 'my_task', 300
# In each class as many words of each length.
WORDS = {
  'sport': (
    *('match', 'coach', 'pitch', 'goalie', 'league', 'tennis'),
    *('referee', 'stadium', 'penalty', 'halftime', 'training', 'marathon'),
  ),
  'food': (
    *('bread', 'spice', 'sauce', 'butter', 'garlic', 'cheese'),
    *('oregano', 'pancake', 'noodles', 'broccoli', 'dumpling', 'cinnamon'),
  ),
  'travel': (
    *('hotel', 'beach', 'ferry', 'museum', 'ticket', 'island'),
    *('airport', 'luggage', 'harbour', 'mountain', 'passport', 'suitcase'),
  ),
}
TEMPLATES = (
  'My sister told me about the {0} and we spoke of the {1} until {2}.',
  'Nobody expected much of the {0}, least of all after the {1} on {2}.',
  'We waited an hour for the {0}, but the {1} was worth it.',
  'Last {2} the {0} was a little disappointing; the {1} made up for it.',
  'I will remember that {0} for a long time, and the {1} even longer.',
  'If you ask me, the {0} on {2} mattered more than the {1}.',
  'Last {2} the {0} surprised everyone, and so did the {1}.',
  'There is nothing like a good {0} when the {1} is near.',
)
DAYS = ('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday')


def make_texts(seed, number):
  """Returns so many different texts, each with its class, the classes in turn."""
  rng, labels, found = random.Random(seed), sorted(WORDS), {}
  while len(found) < number:
    label = labels[len(found) % len(labels)]
    first, second = rng.sample(range(len(WORDS[label])), 2)
    words = WORDS[label][first], WORDS[label][second], rng.choice(DAYS)
    found.setdefault(rng.choice(TEMPLATES).format(*words), label)
  return list(found.items())


def printed_commands(page):
  """Returns the commands of the first block of a page of docs/ that has `switch_jax.main` in it."""
  blocks = re.findall(r'^```sh\n(.*?)^```', (runs.ROOT / 'docs' / page).read_text(encoding='utf-8'), re.S | re.M)
  block = next(block for block in blocks if 'switch_jax.main' in block)
  return [line.strip() for line in block.replace('\\\n', ' ').splitlines()]


def call(folder, command):
  """Runs a command in a folder as a shell there would; returns the seconds."""
  print(f'$ {command}', flush=True)
  places = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ['PATH']])
  began = time.monotonic()
  environment = {**os.environ, 'PATH': places, 'PYTHONPATH': str(runs.ROOT)}
  with (folder / 'log.txt').open('a', encoding='utf-8') as log:
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
  if done.returncode:
    raise SystemExit(f'exit status {done.returncode}; see {folder / "log.txt"}')
  return time.monotonic() - began


def share(pairs):
  """Returns how many of the pairs are equal, in percent."""
  pairs = list(pairs)
  return 100 * sum(a == b for a, b in pairs) / len(pairs)


def by_length(train, new):
  """Returns the accuracy of the most frequent class of the training texts that are nearest in length."""
  lengths = collections.defaultdict(collections.Counter)
  for text, label in train:
    lengths[len(text)][label] += 1

  def guess(text):
    return lengths[min(lengths, key=lambda length: abs(length - len(text)))].most_common(1)[0][0]

  return share((guess(text), label) for text, label in new)


def huggingface_predictions(python, folder, texts):
  """Returns what transformers predicts for texts with an exported folder."""
  program = runs.ROOT / 'benchmarks' / 'huggingface_predictions.py'
  given = ''.join(f'{json.dumps(text)}\n' for text in texts)
  done = subprocess.run([python, program, folder], input=given, stdout=subprocess.PIPE, text=True, check=True)
  return [json.loads(line) for line in done.stdout.splitlines()]


def walk(folder, seed, flags, begin):
  """Runs the commands in an empty folder; returns the row of the table, by column."""
  folder.mkdir(parents=True)
  texts = make_texts(seed, 2 * ROWS)
  for name, part in (('texts.csv', texts[:ROWS]), ('new.csv', texts[ROWS:])):
    with (folder / name).open('w', encoding='utf-8', newline='') as file:
      columns = ('text', 'label') if name == 'texts.csv' else ('text',)
      csv.writer(file).writerows([columns, *(row[: len(columns)] for row in part)])
  seconds = 0.0
  for number, command in enumerate(printed_commands('your_labels.md')):
    if number == 0 and begin:
      continue
    command = command.replace(
      'INITIAL_CHECKPOINT_PATH=runs/my_task_text', f'INITIAL_CHECKPOINT_PATH={begin}', bool(begin)
    )
    training = 'run_mode' not in command and 'switch_jax.main' in command
    more = [f'--gin.RANDOM_SEED={seed}'] if training and seed else []
    more += (
      [f'--gin.TRAIN_STEPS={runs.SHORT_STEPS}', *runs.training_bindings(flags)] if training and flags.shortened else []
    )
    seconds += call(folder, ' '.join([command, *more]))

  model_dir = ModelDir(folder / 'runs' / TASK)
  metrics = model_dir.read_task_metrics(TASK)[-1]
  decoded = runs.read_predictions(model_dir.path, TASK, metrics['step'])
  predicted = [json.loads(line) for line in (folder / 'predictions.jsonl').read_text().splitlines()]
  held_out = [(record['inputs'], record['targets']) for record in decoded]
  train = [pair for pair in texts[:ROWS] if pair not in held_out]
  majority = collections.Counter(label for _, label in train).most_common(1)[0][0]
  row = {
    'seed': seed,
    'rows': len(decoded),
    'accuracy': metrics['accuracy'],
    'new texts': share(
      (record['prediction'], label) for record, (_, label) in zip(predicted, texts[ROWS:], strict=True)
    ),
    'majority': share((majority, label) for _, label in held_out),
    'new texts by length': by_length(train, texts[ROWS:]),
    'seconds': seconds,
  }
  if flags.huggingface:
    ours = {record['inputs']: record['prediction'] for record in decoded}
    ours |= {record['text']: record['prediction'] for record in predicted}
    theirs = huggingface_predictions(flags.huggingface, folder / 'exported', list(ours))
    row['equal in transformers'] = f'{sum(a == b for a, b in zip(ours.values(), theirs, strict=True))} of {len(ours)}'
  return row


def main():
  """Walks with every seed, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--out', type=pathlib.Path, default=runs.ROOT / 'runs' / 'labelled_walk', help='must not exist')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--text_files', help='pattern of .txt files to pre-train on, in place of the inputs of the table')
  parser.add_argument('--huggingface', metavar='PYTHON', help='of an environment with torch and transformers')
  flags = runs.parse_flags(parser)
  out, begin = flags.out.resolve(), None
  out.mkdir(parents=True)
  if flags.text_files:
    command = printed_commands('your_text.md')[0].replace('/some/dir/*.txt', flags.text_files)
    more = [f'--gin.TRAIN_STEPS={runs.SHORT_STEPS}', *runs.training_bindings(flags)] if flags.shortened else []
    print(f'{call(out, " ".join([command, *more])):.0f} s')
    begin = out / 'runs' / 'my_text'
  rows = []
  for seed in flags.seeds:
    rows.append(row := walk(out / f'seed_{seed}', seed, flags, begin))
    print(f'| {" | ".join(row)} |\n|{"---|" * len(row)}')
    print(f'| {" | ".join(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values())} |', flush=True)
  print(
    f'\naccuracy {statistics.mean(row["accuracy"] for row in rows):.1f} on average; chance is {100 / len(WORDS):.1f}'
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
