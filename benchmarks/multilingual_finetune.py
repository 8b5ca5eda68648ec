"""Pre-trains a small mSwitch and fine-tunes it on language identification and on translation, beside trivial baselines.

    pip install -e '.[demo]' && python benchmarks/multilingual_finetune.py

Language identification tells the language of a held-out text of the multilingual corpus, as bytes; the baseline says
the most frequent language always. Translation is from English into six languages, of messages of programs whose
translations into any language neither pre-training nor fine-tuning has read, in pieces of a vocabulary made of the
corpus; the baseline copies the English. Each run is a command of its own; a finished one is not run again, and one that
was stopped goes on where it was. `--shortened` goes the whole way in few steps; `--table` only prints.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import sys

import runs

LANGUAGE_ID, TRANSLATION = 'multilingual_language_id', 'message_translation'
PIECES = 4000
COMMON = ['--gin.config.MoeConfig.train_capacity_factor=2.0', '--gin.LOG_PERIOD=20']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What a task is trained with.

  Attributes:
    module: that registers it.
    lengths: of inputs and targets, in tokens.
    pretrain_lengths: those of the pre-training, which fill up to the same text.
    languages: None for all.
    pieces: whether the vocabulary is SentencePiece's; else bytes.
    rows: of a batch.
    model: bindings of the model.
    pretrain: bindings of the span corruption before.
    pretrain_steps: of it.
    finetune: bindings of the fine-tuning.
    steps: of the fine-tuning.
    decoding: bindings of the evaluation.
  """

  module: str
  lengths: dict[str, int]
  pretrain_lengths: dict[str, int]
  languages: tuple[str, ...] | None
  pieces: bool
  rows: int
  model: tuple[str, ...]
  pretrain: tuple[str, ...]
  pretrain_steps: int
  finetune: tuple[str, ...]
  steps: int
  decoding: tuple[str, ...]


TASKS = {
  LANGUAGE_ID: Task(
    module='switch_jax.tasks.multilingual',
    lengths={'inputs': 112, 'targets': 6},
    pretrain_lengths={'inputs': 64, 'targets': 14},
    languages=None,
    pieces=False,
    rows=64,
    model=(
      '--gin.NUM_EXPERTS=16', '--gin.config.ModelConfig.emb_dim=64', '--gin.config.ModelConfig.num_heads=2',
      '--gin.config.ModelConfig.mlp_dim=256',
    ),
    pretrain=(),
    pretrain_steps=800,
    finetune=('--gin.LEARNING_RATE=0.01',),
    steps=700,
    decoding=(),
  ),
  TRANSLATION: Task(
    module='switch_jax.tasks.translation',
    lengths={'inputs': 52, 'targets': 52},
    pretrain_lengths={'inputs': 52, 'targets': 14},
    languages=('ar', 'de', 'el', 'fr', 'hi', 'ru'),
    pieces=True,
    rows=64,
    model=(
      '--gin.NUM_EXPERTS=8', '--gin.config.ModelConfig.init_scale=1.0', '--gin.config.ModelConfig.vocab_size=4224',
    ),
    # At 1.0, the default, so short a pre-training leaves a model that learns slower than one from scratch.
    pretrain=('--gin.LEARNING_RATE=0.3',),
    pretrain_steps=400,
    # Texts of six languages are much to learn: pre-training's schedule, which begins at 0.05, and little dropout.
    finetune=(
      '--gin.LEARNING_RATE=1.0', "--gin.config.OptimizerConfig.schedule='rsqrt'",
      '--gin.config.OptimizerConfig.warmup_steps=400', '--gin.EXPERT_DROPOUT_RATE=0.1',
    ),
    steps=3500,
    decoding=('--gin.DECODING=beam',),  # as T5 translates: four beams, a length penalty of 0.6
  ),
}  # fmt: skip
PRETRAIN = ['--gin_file=gin/examples/multilingual.gin', '--gin.EVAL_STEPS=100', *COMMON]
FINETUNE = [
  '--gin_file=gin/models/switch_tiny.gin', '--gin_file=gin/runs/finetune.gin',
  '--gin.EVAL_STEPS=16', '--gin.config.CheckpointConfig.keep_best=None', *COMMON,
]  # fmt: skip
# BLEU needs four words in a row; of texts as short as these chrF tells more.
METRICS = {LANGUAGE_ID: ('accuracy',), TRANSLATION: ('chrf', 'bleu', 'accuracy')}


def steps_of(flags, task):
  """Returns the steps of fine-tuning."""
  return flags.steps or TASKS[task].steps


def vocabulary(flags, task):
  """Returns the vocabulary of a task; one of pieces is trained unless it is there."""
  if not task.pieces:
    return 'bytes'
  path = flags.out / f'pieces_{PIECES}.model'
  if not path.exists():
    arguments = ['--multilingual', f'--size={PIECES}', f'--out={path}']
    runs.call(flags.out / 'vocabulary.log', arguments, 'switch_jax.tasks.train_vocabulary')
  return str(path)


def run(flags, name, seed):
  """Pre-trains, fine-tunes on a task and evaluates, each unless that is done."""
  task, steps = TASKS[name], steps_of(flags, name)
  folder, pretrained = flags.out / f'{name}-{seed}', flags.out / f'pretrained_for_{name}-{seed}'
  words = f'--gin.VOCABULARY={vocabulary(flags, task)}'

  def train(where, arguments, steps):
    period = [f'--gin.{what}_PERIOD={steps // 2}' for what in ('CHECKPOINT', 'EVAL')]
    last = [*period, f'--gin.RANDOM_SEED={seed}', *runs.training_bindings(flags)]
    runs.train(where, [*arguments, *task.model, words, *last], steps)

  pretrain_steps = flags.pretrain_steps or task.pretrain_steps
  train(pretrained, [*PRETRAIN, *task.pretrain, f'--gin.TASK_FEATURE_LENGTHS={task.pretrain_lengths}'], pretrain_steps)
  data = [f'--gin.MIXTURE_OR_TASK_NAME={name}', f'--gin.TASK_FEATURE_LENGTHS={task.lengths}']
  data += [f'--gin.config.DataConfig.task_module={task.module}', f'--gin.config.DataConfig.languages={task.languages}']
  start = [f'--gin.INITIAL_CHECKPOINT_PATH={pretrained}', f'--gin.BATCH_SIZE={task.rows}']
  train(folder, [*FINETUNE, *data, *start, *task.finetune], steps)
  if not runs.read_predictions(folder, name, steps):
    evaluate = ['--run_mode=eval', '--gin_file=gin/runs/eval.gin', f'--gin.MODEL_DIR={folder}']
    rows = runs.evaluation_bindings(flags) or ['--gin.BATCH_SIZE=256']
    runs.call(f'{folder}.log', [*evaluate, *task.decoding, *data, words, *rows])


def score(task, records):
  """Returns the metrics of the model's predictions and of the baseline's, on the same examples."""
  from switch_jax.tasks import answers, metrics

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
    seeds = {
      s: runs.read_predictions(flags.out / f'{task}-{s}', task, steps_of(flags, task)) for s in range(flags.seeds)
    }
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
  folder = runs.ROOT / 'runs'
  parser.add_argument('--out', type=pathlib.Path, default=folder / 'multilingual_finetune', help='folder of the runs')
  parser.add_argument('--pretrain_steps', type=int, help='of each task')
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument('--steps', type=int, help='of fine-tuning on each task')
  parser.add_argument('--tasks', nargs='+', choices=list(TASKS), default=list(TASKS))
  parser.add_argument('--table', action='store_true', help='run nothing')
  flags = runs.parse_flags(parser)
  if flags.shortened:
    flags.seeds, flags.pretrain_steps, flags.steps = 1, runs.SHORT_STEPS, runs.SHORT_STEPS
  flags.out = flags.out.resolve()
  flags.out.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  for task in () if flags.table else flags.tasks:
    for seed in range(flags.seeds):
      run(flags, task, seed)
  text, everything = tables(flags)
  if not everything:
    print(f'Nothing has been evaluated in {flags.out}.')
    return 1
  (flags.out / 'results.json').write_text(json.dumps(everything, indent=1, default=float))
  print(f'{text}\n{flags.out / "results.json"}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
