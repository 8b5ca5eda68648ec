"""Distils Switch Transformers into dense ones: the rows of the paper's Tables 6 and 8, with paired seeds.

    python benchmarks/distillation

Pre-training continues bytes of the installed packages' source code; fine-tuning tells the language of a text (extra
demo). For each seed, everything sees the same batches in the same order. Each run is a command of its own; a finished
one is not run again, and one that was stopped goes on where it was.

`--experts=4,8,16,32` repeats the student of the best recipe for teachers of other sizes (Table 7); the first is that of
the other rows. `--top_k=4,16,384` repeats it with so many of the teacher's logits, written to files first. `--table`
only makes tables and picture of what is there; `--shortened` goes the whole way in few steps.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import runs

from switch_jax.folders.model_dir import ModelDir

PRETRAIN_TASK, FINETUNE_TASK = 'source_code_continuation', 'multilingual_language_id'
FINETUNE_DATA = [
  f'--gin.MIXTURE_OR_TASK_NAME={FINETUNE_TASK}', "--gin.TASK_FEATURE_LENGTHS={'inputs': 96, 'targets': 6}",
  '--gin.config.DataConfig.task_module=switch_jax.tasks.multilingual', '--gin.VOCABULARY=bytes',
]  # fmt: skip
FINETUNE = [
  *FINETUNE_DATA, '--gin.BATCH_SIZE=64', '--gin.EVAL_PERIOD=200', '--gin.EVAL_STEPS=32', '--gin.LOG_PERIOD=20',
  '--gin.LEARNING_RATE=0.01', '--gin.config.CheckpointConfig.keep_best=None',
]  # fmt: skip
DENSE, SWITCH = '--gin_file=benchmarks/distillation/dense.gin', '--gin_file=benchmarks/distillation/teacher.gin'
# Row of Table 6: its name, bindings of the recipe, and the paper's share of the teacher's gain.
ROWS = {
  'distil': ('distillation only', ['--gin.SOFT_WEIGHT=1.0', '--gin.INITIALIZE=()'], 3),
  'distil_init': ("+ the teacher's non-expert weights", ['--gin.SOFT_WEIGHT=1.0'], 20),
  'distil_init_mix': ('+ 0.75 hard and 0.25 soft', ['--gin.SOFT_WEIGHT=0.25'], 29),
  'init': ('weights only, no distillation', ['--gin.SOFT_WEIGHT=0.0'], None),
}
BEST = 'distil_init_mix'


def run(flags, folder, arguments, steps):
  """Trains unless that is done; returns how long it took."""
  arguments = [*arguments, f'--gin.CHECKPOINT_PERIOD={steps}', *runs.training_bindings(flags)]
  return runs.train(folder, arguments, steps)


def pretrain(flags, seed):
  """Runs pre-training of one seed: dense model, teachers and students. Returns the seconds taken."""
  common = ['--gin_file=benchmarks/distillation/pretrain.gin', f'--gin.RANDOM_SEED={seed}']
  seconds = run(flags, flags.out / f'dense-{seed}', [DENSE, *common], flags.steps)
  for count in flags.experts:
    teacher = flags.out / f'teacher_{count}-{seed}'
    seconds += run(flags, teacher, [SWITCH, *common, f'--gin.NUM_EXPERTS={count}'], flags.steps)
    distil = [DENSE, common[0], '--gin_file=gin/runs/distill.gin', *common[1:], '--gin.TEACHER_DTYPE=float32']
    for name, (_, bindings, _) in ROWS.items():
      if count == flags.experts[0] or name == BEST:
        folder = flags.out / f'{name}_{count}-{seed}'
        seconds += run(flags, folder, [*distil, *bindings, f'--gin.TEACHER_PATH={teacher}'], flags.steps)
  teacher, best = flags.out / f'teacher_{flags.experts[0]}-{seed}', [*distil, *ROWS[BEST][1]]
  for top_k in flags.top_k:
    logits, folder = flags.out / f'logits_{top_k}-{seed}', flags.out / f'top_{top_k}-{seed}'
    files = [*best, f'--gin.TEACHER_PATH={teacher}', f'--gin.TEACHER_LOGITS={logits}', f'--gin.TOP_K={top_k}']
    if not runs.is_finished(folder, flags.steps):
      written = ['--run_mode=teacher', *files, f'--gin.MODEL_DIR={folder}', f'--gin.TRAIN_STEPS={flags.steps}']
      written += runs.training_bindings(flags)
      seconds += runs.call(f'{logits}.log', written)  # a run that is there already says so and ends
      seconds += run(flags, folder, files, flags.steps)
  return seconds


def finetune(flags, seed):
  """Runs fine-tuning of one seed: dense model, teacher, student, and their evaluations. Returns the seconds taken."""
  count, steps, seconds = flags.experts[0], flags.finetune_steps, 0.0
  common = [*FINETUNE, f'--gin.RANDOM_SEED={seed}']
  teacher = flags.out / f'finetuned_teacher_{count}-{seed}'
  switch, dense = '--gin_file=gin/runs/finetune.gin', '--gin_file=gin/runs/finetune_dense.gin'
  start = lambda name: f'--gin.INITIAL_CHECKPOINT_PATH={flags.out / f"{name}-{seed}"}'  # noqa: E731
  student = [DENSE, dense, '--gin_file=gin/runs/distill.gin', *common, '--gin.INITIAL_CHECKPOINT_PATH=None']
  commands = {
    teacher: [SWITCH, switch, f'--gin.NUM_EXPERTS={count}', *common, start(f'teacher_{count}')],
    flags.out / f'finetuned_dense-{seed}': [DENSE, dense, *common, start('dense')],
    flags.out / f'finetuned_student_{count}-{seed}': [
      *student, f'--gin.TEACHER_PATH={teacher}', '--gin.TEACHER_DTYPE=float32',
    ],
  }  # fmt: skip
  for folder, arguments in commands.items():
    seconds += run(flags, folder, arguments, steps)
    if accuracy(folder, steps) is None:
      rows = runs.evaluation_bindings(flags) or ['--gin.BATCH_SIZE=256']
      evaluation = ['--run_mode=eval', '--gin_file=gin/runs/eval.gin', f'--gin.MODEL_DIR={folder}']
      seconds += runs.call(f'{folder}.log', [*evaluation, *FINETUNE_DATA, *rows])
  return seconds


def accuracy(folder, steps):
  """Returns the accuracy of the generated languages, in percent; None before it has been evaluated."""
  lines = ModelDir(folder).read_task_metrics(FINETUNE_TASK)
  return next((line['accuracy'] for line in lines if line['step'] == steps and 'accuracy' in line), None)


def held_out(folder, steps):
  """Returns the held-out loss in nats per byte after the last step; None before it is finished."""
  lines = ModelDir(folder).read_held_out(PRETRAIN_TASK)
  return next((line['cross_ent_loss'] for line in lines if line['step'] == steps), None)


def parameters(folder, steps):
  """Returns the number of parameters of a run."""
  return runs.read_config(folder, steps)['parameters']


def spread(values):
  """Returns mean and standard deviation."""
  return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float('nan')


def shares(dense, teacher, student):
  """Returns the share of the teacher's gain that the student keeps, in percent, for each seed; NaN without a gain."""
  rows = zip(dense, teacher, student, strict=True)
  return [100 * (s - d) / (t - d) if t != d else float('nan') for d, t, s in rows]


def collect(flags):
  """Returns the numbers of all finished rows, and of the seeds that have all of them."""
  count = flags.experts[0]
  folders = {'dense': 'dense', 'teacher': f'teacher_{count}'} | {name: f'{name}_{count}' for name in ROWS}
  for other in flags.experts[1:]:
    folders |= {f'teacher_{other}': f'teacher_{other}', f'{BEST}_{other}': f'{BEST}_{other}'}
  folders |= {f'top_{top_k}': f'top_{top_k}' for top_k in flags.top_k}
  result = {'steps': flags.steps, 'experts': count, 'pretraining': {}, 'finetuning': {}}
  for kind, value, steps, names in (
    ('pretraining', held_out, flags.steps, folders),
    ('finetuning', accuracy, flags.finetune_steps, {
      'dense': 'finetuned_dense', 'teacher': f'finetuned_teacher_{count}', 'student': f'finetuned_student_{count}',
    }),
  ):  # fmt: skip
    found = {n: {s: value(flags.out / f'{f}-{s}', steps) for s in range(flags.seeds)} for n, f in names.items()}
    found = {n: v for n, v in found.items() if any(x is not None for x in v.values())}
    whole = [s for s in range(flags.seeds) if found and all(v[s] is not None for v in found.values())]
    for name, values in found.items():
      if whole:
        count_of = parameters(flags.out / f'{names[name]}-{whole[0]}', steps)
        result[kind][name] = {'parameters': count_of, 'seeds': whole, 'values': [values[s] for s in whole]}
  return result


def tables(result):
  """Returns Tables 6, 7 and 8 as Markdown."""
  found, lines = result['pretraining'], []
  if {'dense', 'teacher'} <= set(found):
    dense, teacher = found['dense']['values'], found['teacher']['values']
    lines += ['| row | parameters | held-out loss, nats a byte | share of the gain kept, % | in the paper |']
    lines += ['| --- | --- | --- | --- | --- |']
    titles = {'dense': ('dense', 0), 'teacher': (f'{result["experts"]} experts (teacher)', 100)}
    for name in ('dense', 'teacher', *ROWS):
      if name in found:
        title, paper = titles.get(name) or (ROWS[name][0], ROWS[name][2])
        mean, deviation = spread(found[name]['values'])
        kept, around = spread(shares(dense, teacher, found[name]['values']))
        share = f'{kept:.0f}' if name in titles else f'{kept:.0f} ± {around:.0f}'
        count = f'{found[name]["parameters"]:,}'
        lines += [
          f'| {title} | {count} | {mean:.3f} ± {deviation:.3f} | {share} | {"none" if paper is None else paper} |'
        ]
    for name in found:
      if name.startswith(f'{BEST}_'):
        other = name.rpartition('_')[2]
        kept, around = spread(shares(dense, found[f'teacher_{other}']['values'], found[name]['values']))
        lines += [f'\nTeacher of {other} experts: {kept:.0f} ± {around:.0f} % kept.']
      if name.startswith('top_') and BEST in found:
        apart = [a - b for a, b in zip(found[name]['values'], found[BEST]['values'], strict=True)]
        mean, deviation = spread(apart)
        lines += [f'\nWith the {name[4:]} largest logits: loss {mean:+.4f} ± {deviation:.4f} beside all of them, live.']
  found = result['finetuning']
  if {'dense', 'teacher', 'student'} <= set(found):
    lines += ['', '| fine-tuned | parameters | accuracy of the language, % |', '| --- | --- | --- |']
    for name, values in found.items():
      mean, deviation = spread(values['values'])
      lines += [f'| {name} | {values["parameters"]:,} | {mean:.1f} ± {deviation:.1f} |']
    dense, teacher, student = (found[name]['values'] for name in ('dense', 'teacher', 'student'))
    gain, apart = spread([t - d for t, d in zip(teacher, dense, strict=True)])
    kept, around = spread(shares(dense, teacher, student))
    if gain > 2 * apart:
      lines += [f'\nThe student keeps {kept:.0f} ± {around:.0f} % of the gain (the paper on SuperGLUE: 30).']
    else:
      lines += [
        f'\nThe gain of the teacher is {gain:.1f} ± {apart:.1f} points: what share of it is kept cannot be told.'
      ]
  return '\n'.join(lines)


def draw(result, path):
  """Draws the shares of the gain, a point for each seed, beside the paper's."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  found = result['pretraining']
  names = [name for name in ROWS if name in found]
  if not names:
    return
  figure = Figure(figsize=(8, 3.4), layout='constrained', facecolor='white')
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  for place, name in enumerate(reversed(names)):
    values = shares(*(found[n]['values'] for n in ('dense', 'teacher', name)))
    axes.plot(
      values, [place] * len(values), 'o', color='#9db4d0', markersize=7, label='one seed' if not place else None
    )
    axes.plot(statistics.fmean(values), place, '|', color='#1f3a5f', markersize=22, markeredgewidth=3,
              label='mean' if not place else None)  # fmt: skip
    if ROWS[name][2] is not None:
      axes.plot(
        ROWS[name][2], place, 'x', color='#c8553d', markersize=8, label='the paper' if name == names[-2] else None
      )
  axes.axvline(0, color='#5c5c5c', linewidth=1, linestyle='--')
  axes.set_yticks(range(len(names)), [ROWS[name][0] for name in reversed(names)])
  axes.set_ylim(-0.6, len(names) - 0.4)
  axes.set_xlabel("share of the teacher's gain over the dense model that the student keeps, %")
  axes.grid(axis='x', color='#e8e8e8')
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, loc='upper right')
  figure.savefig(path, dpi=130)


def main():
  """Runs what is not finished yet; prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--out', type=pathlib.Path, default=runs.ROOT / 'runs' / 'distillation', help='folder of the runs'
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=1500, help='of pre-training')
  parser.add_argument('--finetune_steps', type=int, default=600)
  parser.add_argument('--experts', type=lambda text: [int(x) for x in text.split(',')], default=[16], metavar='N[,N]')
  parser.add_argument('--top_k', type=lambda text: [int(x) for x in text.split(',')], default=[], metavar='K[,K]')
  parser.add_argument('--jobs', type=int, default=1, help='seeds that run at once')
  parser.add_argument('--table', action='store_true', help='run nothing')
  flags = runs.parse_flags(parser)
  if flags.shortened:
    flags.seeds, flags.steps, flags.finetune_steps = 1, runs.SHORT_STEPS, runs.SHORT_STEPS
    flags.experts, flags.top_k = [4, 2], [4]
  flags.out = flags.out.resolve()
  flags.out.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  if not flags.table:
    with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
      for part in (pretrain, finetune):
        print(
          f'{part.__name__}: {sum(pool.map(lambda seed, p=part: p(flags, seed), range(flags.seeds))):.0f} s', flush=True
        )
  result = collect(flags)
  (flags.out / 'results.json').write_text(json.dumps(result, indent=1))
  print(tables(result))
  draw(result, flags.out / 'distillation.png')
  print(f'{flags.out / "results.json"}, {flags.out / "distillation.png"}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
