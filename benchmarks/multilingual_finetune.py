"""Pre-trains a small mSwitch and fine-tunes it on language identification and on translation, beside trivial baselines.

    pip install -e '.[demo]' && python benchmarks/multilingual_finetune.py

Language identification tells the language of a held-out text of the multilingual corpus; the baseline says the most
frequent language always. Translation is from English into six languages, of Django's messages whose translations into
any language neither pre-training nor fine-tuning has read; the baseline copies the English. Each run is a command of
its own; a finished one is not run again, and one that was stopped goes on where it was. `--table` only prints.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LANGUAGE_ID, TRANSLATION = 'multilingual_language_id', 'message_translation'
# Of each task: its module, its lengths in bytes, its languages (None: all), rows of a batch, expert dropout,
# and steps by default.
TASKS = {
  LANGUAGE_ID: ('tasks.multilingual', {'inputs': 112, 'targets': 6}, None, 64, 0.4, 700),
  TRANSLATION: (
    'tasks.translation',
    {'inputs': 88, 'targets': 64},
    ('ar', 'de', 'el', 'fr', 'hi', 'ru'),
    32,
    0.1,
    1200,
  ),
}
SIZES = [
  '--gin.NUM_EXPERTS=16', '--gin.config.MoeConfig.train_capacity_factor=2.0', '--gin.config.ModelConfig.emb_dim=64',
  '--gin.config.ModelConfig.num_heads=2', '--gin.config.ModelConfig.mlp_dim=256', '--gin.LOG_PERIOD=20',
]  # fmt: skip
PRETRAIN = ['--gin_file=gin/examples/multilingual.gin', '--gin.EVAL_STEPS=100', *SIZES]
FINETUNE = [
  '--gin_file=gin/models/switch_tiny.gin', '--gin_file=gin/runs/finetune.gin', '--gin.LEARNING_RATE=0.01',
  '--gin.EVAL_STEPS=16', '--gin.config.CheckpointConfig.keep_best=None', *SIZES,
]  # fmt: skip
# BLEU needs four words in a row; of texts as short as these chrF tells more.
METRICS = {LANGUAGE_ID: ('accuracy',), TRANSLATION: ('chrf', 'bleu', 'accuracy')}


def steps_of(flags, task):
  """Returns the steps of fine-tuning."""
  return flags.steps or TASKS[task][-1]


def call(log, arguments):
  """Runs `python -m switch_jax.main`; its output goes to a file."""
  began = time.monotonic()
  with open(log, 'a', encoding='utf-8') as file:
    command = [sys.executable, '-m', 'switch_jax.main', *arguments]
    status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
  if status:
    raise SystemExit(f'{log.stem} ended with status {status}; see {log}')
  print(f'{log.stem}: {time.monotonic() - began:.0f} s', flush=True)


def predictions(folder, task, steps):
  """Returns what was predicted for every held-out example, with its inputs and targets; None before that."""
  path = folder / 'predictions' / task / f'{steps}.jsonl'
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] if path.exists() else None


def is_finished(folder, steps):
  """Whether a run has its last checkpoint and evaluation."""
  return (folder / 'checkpoints' / str(steps)).is_dir() and (folder / 'summary.png').exists()


def train(folder, arguments, steps, seed):
  """Trains, unless that is done."""
  if not is_finished(folder, steps):
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [*arguments, f'--gin.MODEL_DIR={folder}', f'--gin.TRAIN_STEPS={steps}', f'--gin.RANDOM_SEED={seed}']
    call(
      pathlib.Path(f'{folder}.log'), [*arguments, *(f'--gin.{n}_PERIOD={steps // 2}' for n in ('CHECKPOINT', 'EVAL'))]
    )


def run(flags, task, seed):
  """Pre-trains, fine-tunes on a task and evaluates, each unless that is done."""
  module, lengths, languages, rows, dropout, _ = TASKS[task]
  steps, folder, pretrained = steps_of(flags, task), flags.out / f'{task}-{seed}', flags.out / f'pretrained-{seed}'
  train(pretrained, PRETRAIN, flags.pretrain_steps, seed)
  data = [f'--gin.MIXTURE_OR_TASK_NAME={task}', f'--gin.TASK_FEATURE_LENGTHS={lengths}', '--gin.VOCABULARY=bytes']
  data += [f'--gin.config.DataConfig.task_module={module}', f'--gin.config.DataConfig.languages={languages}']
  start = [f'--gin.INITIAL_CHECKPOINT_PATH={pretrained}', f'--gin.BATCH_SIZE={rows}']
  start += [f'--gin.EXPERT_DROPOUT_RATE={dropout}']
  train(folder, [*FINETUNE, *data, *start], steps, seed)
  if predictions(folder, task, steps) is None:
    evaluate = ['--run_mode=eval', '--gin_file=gin/runs/eval.gin', f'--gin.MODEL_DIR={folder}', '--gin.BATCH_SIZE=256']
    call(pathlib.Path(f'{folder}.log'), [*evaluate, *data])


def score(task, records):
  """Returns the metrics of the model's predictions and of the baseline's, on the same examples."""
  from tasks import answers, metrics

  if task == LANGUAGE_ID:
    metric, postprocess = metrics.by_group(metrics.accuracy), answers.in_its_own_group
    # Training has as many texts of all languages that have enough: the best guess of the held-out texts themselves.
    majority = collections.Counter(r['targets'] for r in records).most_common(1)[0][0]
    trivial = [majority] * len(records)
  else:
    metric, postprocess = metrics.by_group(metrics.chrf, metrics.bleu, metrics.accuracy), answers.translated
    trivial = [r['inputs'].partition(': ')[2] for r in records]
  targets = [
    postprocess(r['targets'], {'inputs_pretokenized': r['inputs'], 'targets_pretokenized': r['targets']}, True)
    for r in records
  ]
  return {'model': metric(targets, [r['prediction'] for r in records]), 'baseline': metric(targets, trivial)}


def by_language(found, name):
  """Returns the values of a metric by language."""
  return {key.partition('/')[2]: float(value) for key, value in found.items() if key.startswith(f'{name}/')}


def tables(flags):
  """Returns the numbers as Markdown, and everything as plain JSON."""
  lines, everything = ['| task | metric | fine-tuned | baseline | languages where it is higher |'], {}
  lines += ['| --- | --- | --- | --- | --- |']
  examples, details = [], []
  for task, names in METRICS.items():
    seeds = {s: predictions(flags.out / f'{task}-{s}', task, steps_of(flags, task)) for s in range(flags.seeds)}
    scores = [score(task, records) for records in seeds.values() if records]
    if not scores:
      continue
    everything[task] = scores
    for name in names:
      for key, title in ((name, name), (f'{name}_mean_over_groups', f'{name}, mean over languages')):
        cells = [' / '.join(f'{s[who][key]:.1f}' for s in scores) for who in ('model', 'baseline')]
        better = [[a > b for a, b in pairs(s, name)] for s in scores]
        share = ' / '.join(f'{sum(b)} of {len(b)}' for b in better) if key != name else ''
        lines += [f'| {task} | {title} | {cells[0]} | {cells[1]} | {share} |']
    values = by_language(scores[0]['model'], names[0])
    order = sorted(values, key=lambda language: -values[language])
    middle = len(order) // 2
    for title, chosen in (
      ('highest', order[:5]), ('middle', order[middle : middle + 5]), ('lowest', order[-5:]),
    ):  # fmt: skip
      told = (f'{c} {values[c]:.0f} ({by_language(scores[0]["baseline"], names[0])[c]:.0f})' for c in chosen)
      details += [f'{task}, {names[0]}, {title} (baseline): {", ".join(told)}.']
    examples += [
      f'{task}: {r["inputs"]!r} -> {r["prediction"]!r}; true: {r["targets"]!r}'
      for r in next(iter(filter(None, seeds.values())))[7 :: max(1, len(values) * 7)][:6]
    ]
  return '\n'.join([*lines, '', *details, '', *examples]), everything


def pairs(scores, name):
  """Returns the model's and the baseline's value of a metric in each language."""
  model, baseline = (by_language(scores[who], name) for who in ('model', 'baseline'))
  return [(model[language], baseline[language]) for language in model]


def main():
  """Runs what is not finished yet; prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  folder = ROOT / 'runs'
  parser.add_argument('--out', type=pathlib.Path, default=folder / 'multilingual_finetune', help='folder of the runs')
  parser.add_argument('--pretrain_steps', type=int, default=800)
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument('--steps', type=int, help='of fine-tuning on each task')
  parser.add_argument('--tasks', nargs='+', choices=list(TASKS), default=list(TASKS))
  parser.add_argument('--table', action='store_true', help='run nothing')
  flags = parser.parse_args()
  flags.out = flags.out.resolve()
  flags.out.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  for task in () if flags.table else flags.tasks:
    for seed in range(flags.seeds):
      run(flags, task, seed)
  text, everything = tables(flags)
  (flags.out / 'results.json').write_text(json.dumps(everything, indent=1, default=float))
  print(f'{text}\n{flags.out / "results.json"}')
  return 0


if __name__ == '__main__':
  sys.path.insert(0, str(ROOT))
  sys.exit(main())
