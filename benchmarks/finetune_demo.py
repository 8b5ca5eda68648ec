"""Pre-trains a tiny Switch Transformer on Wikipedia's openings, fine-tunes it, and evaluates on articles it never saw.

    python benchmarks/finetune_demo.py

Needs the extra demo. Every part is a command of its own that is printed before it runs; a part that is finished is not
run again, and one that was stopped goes on where it was. At the end: a table of held-out metrics, beside the most
frequent topic and the same model trained from scratch for the same steps, and three predictions beside the truth.
`--shortened` goes the whole way in few steps.
"""

import argparse
import collections
import json
import pathlib
import random
import shlex
import subprocess
import sys
import time

import runs

from switch_jax.folders.model_dir import ModelDir

LENGTHS = "{'inputs': 96, 'targets': 24}"
PRETRAIN = 'gin/examples/wikipedia_pretrain.gin'
FINETUNE = 'gin/examples/wikipedia_finetune.gin'
SCRATCH = ['--gin.INITIAL_CHECKPOINT_PATH=None']
# From scratch a constant 1e-3 is slow; with the schedule of pre-training it does better than the pre-trained model does
# with 1e-3 (docs/results.md).
FAST = [*SCRATCH, '--gin.LEARNING_RATE=1.0', '--gin.config.OptimizerConfig.schedule=rsqrt']
FAST += ['--gin.config.OptimizerConfig.warmup_steps=200']
TOPIC, DESCRIPTION = 'wikipedia_topic', 'wikipedia_description'
STEPS = 1500  # of pre-training
# Folder: the task, its steps, how it begins, and what it is called in the table.
RUNS = {
  'topic': (TOPIC, 800, None, 'pre-trained, then fine-tuned'),
  'topic_from_scratch': (TOPIC, 800, SCRATCH, 'from scratch, the same settings'),
  'description': (DESCRIPTION, 400, None, 'pre-trained, then fine-tuned'),
}
# Six minutes more, with --fast_too.
FAST_RUN = {'topic_from_scratch_fast': (TOPIC, 800, FAST, "from scratch, pre-training's learning rate")}


def run(arguments, seconds, name):
  """Runs a command of switch_jax from the repository, and adds how long it took to `seconds`."""
  command = [sys.executable, '-m', 'switch_jax.main', *arguments]
  print(f'\n$ {shlex.join(["python", *command[1:]])}', flush=True)
  began = time.monotonic()
  status = subprocess.run(command, cwd=runs.ROOT, check=False).returncode
  if status:
    sys.exit(status)
  seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began


def read_metrics(folder, task, steps):
  """Returns the metrics of a task after so many steps, or None before they have been evaluated."""
  return next((line for line in ModelDir(folder).read_task_metrics(task) if line['step'] == steps), None)


def predictions_by_text(folder, task, steps):
  """Returns, by the text of the article, what was predicted and what is true."""
  records = runs.read_predictions(folder, task, steps)
  return {r['inputs'].split(': ', 1)[1]: (r['prediction'], r['targets']) for r in records}


def majority():
  """Returns the most frequent topic of the training articles, and how many held-out ones have it, in percent."""
  from switch_jax.data import corpus
  from switch_jax.tasks import wikipedia

  made = wikipedia.get_corpus(TOPIC)
  train, held_out = (
    collections.Counter(line.split('\t')[1] for line in made.paragraphs(split))
    for split in (corpus.TRAIN, corpus.VALIDATION)
  )
  topic = train.most_common(1)[0][0]
  return topic, 100 * held_out[topic] / held_out.total()


def _with_steps(flags, plan):
  """Returns the runs with the steps that they are to have."""
  short = {name: (task, runs.SHORT_STEPS, *rest) for name, (task, _, *rest) in plan.items()}
  return short if flags.shortened else plan


def shorten(text, width=150):
  """Returns the beginning of a text."""
  return text if len(text) <= width else text[:width].rsplit(' ', 1)[0] + ' ...'


def main():
  """Runs what is not finished yet and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--out', type=pathlib.Path, default=runs.ROOT / 'runs' / 'finetune_demo', help='folder of the runs'
  )
  parser.add_argument(
    '--fast_too', action='store_true', help='also from scratch with the learning rate of pre-training'
  )
  flags = runs.parse_flags(parser)
  out, plan = flags.out.resolve(), _with_steps(flags, RUNS | (FAST_RUN if flags.fast_too else {}))
  out.mkdir(parents=True, exist_ok=True)
  record = out / 'seconds.json'
  seconds = json.loads(record.read_text()) if record.exists() else {}

  def step(arguments, name):
    run(arguments, seconds, name)
    record.write_text(json.dumps(seconds, indent=1))

  pretrained, steps = out / 'pretrain', runs.SHORT_STEPS if flags.shortened else STEPS
  if not ModelDir(pretrained).step(steps).exists():
    lasting = [f'--gin.TRAIN_STEPS={steps}', *runs.training_bindings(flags)]
    step([f'--gin_file={PRETRAIN}', f'--gin.MODEL_DIR={pretrained}', *lasting], 'pretrain')
  results = {}
  for name, (task, steps, begin, _) in plan.items():
    folder = out / name
    common = [f'--gin.MODEL_DIR={folder}', f'--gin.MIXTURE_OR_TASK_NAME={task}']
    if not ModelDir(folder).step(steps).exists():
      begin = [f'--gin.INITIAL_CHECKPOINT_PATH={pretrained}'] if begin is None else begin
      lasting = [f'--gin.TRAIN_STEPS={steps}', *runs.training_bindings(flags)]
      step([f'--gin_file={FINETUNE}', *common, *begin, *lasting], name)
    if read_metrics(folder, task, steps) is None:
      lengths = f'--gin.TASK_FEATURE_LENGTHS={LENGTHS}'
      where = [
        '--run_mode=eval',
        '--gin_file=gin/runs/eval.gin',
        '--gin.config.DataConfig.task_module=switch_jax.tasks.wikipedia',
      ]
      step([*where, *common, lengths, *runs.evaluation_bindings(flags)], f'{name}, evaluation')
    results[name] = read_metrics(folder, task, steps)

  topic, share = majority()
  print('\nTopic of held-out articles, accuracy of the generated text:')
  print(f'  {share:5.1f}   always {topic!r}, the most frequent topic')
  for name, (task, _, _, title) in plan.items():
    if task == TOPIC:
      print(f'  {results[name]["accuracy"]:5.1f}   {title}')
  print('Short description of held-out articles, Rouge-1, Rouge-2, word F1:')
  for name, (task, _, _, title) in plan.items():
    if task == DESCRIPTION:
      print(f'  {results[name]["rouge1"]:5.1f} {results[name]["rouge2"]:5.1f} {results[name]["f1"]:5.1f}   {title}')
  topics, descriptions = (predictions_by_text(out / n, *plan[n][:2]) for n in ('topic', 'description'))
  print('Three of them by lot:')
  both = sorted(set(topics) & set(descriptions))
  for text in random.Random(0).sample(both, min(3, len(both))):
    print(f'  {shorten(text)}')
    for what, (prediction, truth) in (('topic', topics[text]), ('description', descriptions[text])):
      print(f'    {what}: {prediction!r}; it is {truth!r}')
  if seconds:
    print(f'Seconds: {sum(seconds.values()):.0f} in all; {", ".join(f"{n} {s:.0f}" for n, s in seconds.items())}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
