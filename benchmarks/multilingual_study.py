"""Trains mSwitch and its FLOP-matched dense twin in a hundred languages: the paper's Figure 8, with paired seeds.

    pip install -e '.[demo]' && python benchmarks/multilingual_study.py

Span corruption on the bytes of the local multilingual corpus. For each seed both models see the same batches in the
same order; they differ in `ModelConfig.moe` alone. Each run is a command of its own; a finished one is not run again,
and one that was stopped goes on where it was. `--table` only makes table and picture of what is there;
`--shortened` goes the whole way in few steps.

Claims are made for languages with at least 5,000 held-out target tokens. A language's step speed-up is the number of
steps over those after which mSwitch stays at or below the dense twin's final held-out loss in this language, linearly
interpolated between evaluations. Where it never gets there, it is less than 1: the steps after which the dense twin
stays at or below mSwitch's final loss, over all steps.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import statistics
import sys

import numpy as np
import runs

from switch_jax.folders.model_dir import ModelDir

TASK = 'multilingual_span_corruption'
ENOUGH_TOKENS = 5_000
# Small feed-forward networks: what a model has to remember is much, and what it can is little, so that a few thousand
# steps show what parameters are for. Adafactor, untuned: AdamW hides half of what experts gain (studies/).
SETTINGS = [
  '--gin_file=gin/examples/multilingual.gin', '--gin.EVAL_STEPS=10000', '--gin.LOG_PERIOD=20', '--gin.Z_LOSS=0.0',
  '--gin.config.ModelConfig.emb_dim=32', '--gin.config.ModelConfig.num_heads=2', '--gin.config.ModelConfig.head_dim=16',
  '--gin.config.ModelConfig.mlp_dim=32', '--gin.config.ModelConfig.init_scale=1.0',
  '--gin.config.OptimizerConfig.factor_experts=by_size',  # one rule for both models
]  # fmt: skip
# Experts in every layer (the paper: every second one); at twice the mean load hardly a token is dropped.
MODELS = {
  'dense': ['--gin.config.ModelConfig.moe=None'],
  'mswitch': [
    '--gin.NUM_EXPERTS=16', '--gin.config.MoeConfig.encoder_layers=1', '--gin.config.MoeConfig.decoder_layers=1',
    '--gin.config.MoeConfig.train_capacity_factor=2.0',
  ],
}  # fmt: skip
EVALUATIONS = 16
# Figure 8 of the paper, from its pixels: step speed-up and number of languages.
PAPER = {3.2: 10, 3.8: 6, 4.4: 17, 5.0: 48, 5.7: 18, 6.3: 2, 7.6: 1, 8.2: 1, 10.7: 3, 15.1: 1}


def folder_of(flags, model, seed):
  """Returns the MODEL_DIR of a run."""
  return flags.out / f'{model}-{seed}'


def train(flags, seed):
  """Trains both models of a seed; returns the seconds taken."""
  period, seconds = max(flags.steps // EVALUATIONS, 1), 0.0
  for model, bindings in MODELS.items():
    common = [f'--gin.RANDOM_SEED={seed}', f'--gin.EVAL_PERIOD={period}', f'--gin.CHECKPOINT_PERIOD={period}']
    seconds += runs.train(
      folder_of(flags, model, seed), [*SETTINGS, *bindings, *common, *runs.training_bindings(flags)], flags.steps
    )
  return seconds


def evaluations(flags, model, seed):
  """Returns the lines of a finished run's evaluations, one for each step; None before it is finished."""
  lines = ModelDir(folder_of(flags, model, seed)).read_held_out(TASK)
  return lines if lines and lines[-1]['step'] == flags.steps else None


def training_losses(folder):
  """Returns the loss of each language on a sample of the training text, masked as held-out text is, by its name.

  It is computed once and kept in the run's folder.
  """
  path = folder / 'train_sample.json'
  if not path.exists():
    import jax

    from switch_jax import data
    from switch_jax.config import DataConfig, MeshConfig
    from switch_jax.inference.loading import latest_step, load_model, open_store
    from switch_jax.model import Transformer
    from switch_jax.model.losses import group_sums

    store = open_store(folder)
    model = load_model(store, latest_step(store), MeshConfig())
    config = dataclasses.replace(DataConfig.from_json(model.record['run']['data']), eval_split='train_sample')
    sample = data.open_evaluation(config, model.layout.batch_sharding(), 10_000)
    transformer = Transformer(model.config, model.layout, deterministic=True)

    @jax.jit
    def sums(params, batch):
      logits, _ = transformer.apply({'params': params}, batch)
      targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
      return group_sums(logits, targets, weights, batch['decoder_group_ids'], len(sample.groups))

    totals = jax.tree.map(lambda *x: np.sum(x, axis=0), *(jax.device_get(sums(model.params, b)) for b in sample))
    losses = totals['cross_entropy'] / totals['tokens']
    path.write_text(json.dumps(dict(zip(sample.groups, losses.tolist(), strict=True))))
  return json.loads(path.read_text())


def epochs(flags):
  """Returns how often training reads each language's text, by its name; and the tokens of all training text."""
  from switch_jax.config import DataConfig
  from switch_jax.data import sampled_groups
  from switch_jax.data.span_corruption import find_raw_length
  from switch_jax.tasks import multilingual

  record = runs.read_config(folder_of(flags, 'dense', 0), flags.steps)
  config = DataConfig.from_json(record['run']['data'])
  streams, _ = multilingual.get_streams(config)
  shares = sampled_groups.sampling_probabilities(streams.num_bytes, config.sampling_exponent)
  read = shares * flags.steps * config.batch_size * find_raw_length(config.feature_lengths)
  return dict(zip(streams.names, (read / streams.lengths).tolist(), strict=True)), float(streams.lengths.sum())


def steps_to(steps, losses, goal):
  """Returns the step after which losses stay at or below a goal, linearly interpolated; None if the last is above."""
  above = [i for i, loss in enumerate(losses) if loss > goal]
  if not above:
    return float(steps[0])
  last = above[-1]
  if last + 1 == len(losses):
    return None
  part = (losses[last] - goal) / (losses[last] - losses[last + 1])
  return steps[last] + part * (steps[last + 1] - steps[last])


def speed_up(steps, dense, mswitch):
  """Returns the step speed-up of mSwitch over the dense twin from their losses by evaluation."""
  if (reached := steps_to(steps, mswitch, dense[-1])) is not None:
    return steps[-1] / max(reached, 1.0)
  return steps_to(steps, dense, mswitch[-1]) / steps[-1]


def t_interval(values):
  """Returns mean and half the width of the 95 % interval of Student's t; the latter is NaN for one value."""
  from scipy.stats import t

  count = len(values)
  width = t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5 if count > 1 else float('nan')
  return statistics.fmean(values), float(width)


def collect(flags):
  """Returns all numbers, of the seeds that have both models."""
  runs_by_seed = {s: {m: evaluations(flags, m, s) for m in MODELS} for s in range(flags.seeds)}
  finished = {seed: pair for seed, pair in runs_by_seed.items() if all(pair.values())}
  if not finished:
    return None
  seeds = list(finished)
  last = finished[seeds[0]]['dense'][-1]
  names = [name.partition('/')[2] for name in last if name.startswith('target_tokens/')]
  samples = {s: {m: training_losses(folder_of(flags, m, s)) for m in MODELS} for s in seeds}
  passes, corpus_bytes = epochs(flags)
  languages = {}
  for name in names:
    key, found = f'cross_ent_loss/{name}', {'target_tokens': int(last[f'target_tokens/{name}'])}
    for model in MODELS:
      found[model] = [finished[s][model][-1][key] for s in seeds]
      found[f'{model}_training'] = [samples[s][model][name] for s in seeds]
    found['gain'] = [d - m for d, m in zip(found['dense'], found['mswitch'], strict=True)]
    found['gain_mean'], found['gain_interval'] = t_interval(found['gain'])
    found['speed_up'] = [
      speed_up([x['step'] for x in pair['dense']], *([x[key] for x in pair[m]] for m in ('dense', 'mswitch')))
      for pair in finished.values()
    ]
    found['epochs'] = passes[name]
    languages[name] = found
  return {
    'steps': flags.steps,
    'seeds': seeds,
    'enough_tokens': 1 if flags.shortened else ENOUGH_TOKENS,
    'parameters': {m: parameters(flags, m) for m in MODELS},
    'seconds_per_step': {m: statistics.median(seconds(flags, m)) for m in MODELS},
    'all_tokens': {
      m: {'held_out': [finished[s][m][-1]['cross_ent_loss'] for s in seeds]} for m in MODELS
    },
    'all_tokens_speed_up': [
      speed_up([x['step'] for x in pair['dense']], *([x['cross_ent_loss'] for x in pair[m]] for m in MODELS))
      for pair in finished.values()
    ],
    'corpus_bytes': corpus_bytes,
    'languages': languages,
    'experts': expert_bits(flags),
  }  # fmt: skip


def parameters(flags, model):
  """Returns the number of parameters."""
  return runs.read_config(folder_of(flags, model, 0), flags.steps)['parameters']


def seconds(flags, model):
  """Returns the seconds of a step that a run of the first seed had, by line of its metrics."""
  found = [line.get('steps_per_second', 0) for line in ModelDir(folder_of(flags, model, 0)).read_train()]
  return [1 / x for x in found[1:] if x > 0]


def expert_bits(flags):
  """Returns, by layer of the first seed's mSwitch, what a token's language tells about its expert, in bits."""
  path = ModelDir(folder_of(flags, 'mswitch', 0)).experts(TASK, flags.steps)
  if not path.exists():
    return {}
  layers = json.loads(path.read_text())['layers']
  return {name: [layer['group_bits'], layer['group_bits_by_chance']] for name, layer in layers.items()}


def claimed(result):
  """Returns the languages with enough held-out target tokens."""
  return {name: x for name, x in result['languages'].items() if x['target_tokens'] >= result['enough_tokens']}


def table(result):
  """Returns what is claimed, as Markdown."""
  enough, everything, seeds = claimed(result), result['languages'], result['seeds']
  mean_of = lambda key, of: [statistics.fmean(x[key][i] for x in of.values()) for i in range(len(seeds))]  # noqa: E731
  pair = lambda values: f'{statistics.fmean(values):.3f}'  # noqa: E731
  gains = [x['gain_mean'] for x in enough.values()]
  sure = [x['gain_mean'] for x in enough.values() if abs(x['gain_mean']) > x['gain_interval']]
  by_language = {name: statistics.fmean(x['speed_up']) for name, x in enough.items()}
  whole, around = t_interval(mean_of('gain', enough))
  by_seed = mean_of('speed_up', enough)
  spread = f' (seeds: {", ".join(f"{x:.2f}" for x in by_seed)})'
  share = lambda found: f'{100 * len(found) / len(enough):.0f} % ({len(found)})'  # noqa: E731
  passes = [x['epochs'] for x in everything.values()]
  rows = {
    'languages that are judged': (f'{len(enough)} of {len(everything)}', '101'),
    'parameters, dense and mSwitch': (
      ' and '.join(f'{p / 1e6:.2f}M' for p in result['parameters'].values()), '582M; not given'),
    'steps; seeds': (f'{result["steps"]:,}; {len(seeds)}', '1,000,000; 1'),
    'languages with a lower final held-out loss': (share([x for x in gains if x > 0]), '100 %'),
    '... by more than the 95 % t-interval over seeds': (share([x for x in sure if x > 0]), 'not tested'),
    'languages with a higher one by more than that': (share([x for x in sure if x < 0]), 'none'),
    'mean gain in nats a target token, 95 % interval': (
      f'{whole:.3f} ± {around:.3f} (languages: {min(gains):.3f} to {max(gains):.3f})', 'not given'),
    'mean step speed-up': (f'{statistics.fmean(by_language.values()):.2f}{spread}', '5'),
    'languages at least 4 times': (share([x for x in by_language.values() if x >= 4]), '91 %'),
    'languages at least 1.5 times': (share([x for x in by_language.values() if x >= 1.5]), 'all'),
    'times a language is read': (
      f'{statistics.median(passes):.1f} (median; {min(passes):.1f} to {max(passes):.0f})', 'not given'),
  }  # fmt: skip
  for model in MODELS:
    trained, held_out = mean_of(f'{model}_training', enough), mean_of(model, enough)
    gap = [h - t for h, t in zip(held_out, trained, strict=True)]
    rows[f'{model}: loss on training text, on held-out text, gap'] = (
      f'{pair(trained)}, {pair(held_out)}, {pair(gap)}', 'not given')  # fmt: skip
  for layer, (bits, chance) in result['experts'].items():
    rows[f'{layer}: bits that the language tells about the expert'] = (f'{bits:.2f} (by chance {chance:.4f})', '')
  lines = ['| | here | paper |', '| --- | --- | --- |']
  lines += [f'| {name} | {here} | {paper} |' for name, (here, paper) in rows.items()]
  order = sorted(enough, key=lambda name: -enough[name]['gain_mean'])
  for title, names in (('largest', order[:5]), ('smallest', order[-5:])):
    told = (
      f'{n} {enough[n]["gain_mean"]:.3f} ± {enough[n]["gain_interval"]:.3f} ({by_language[n]:.1f}x)' for n in names
    )
    lines += ['', f'The {title} gains, with 95 % intervals and speed-ups: {", ".join(told)}.']
  return '\n'.join(lines)


def draw(result, path):
  """Draws the histogram of speed-ups above the paper's, and every language's gain with its interval."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  enough = claimed(result)
  found = [statistics.fmean(x['speed_up']) for x in enough.values()]
  figure = Figure(figsize=(11, 4.6), layout='constrained', facecolor='white')
  FigureCanvasAgg(figure)
  parts = figure.subplot_mosaic([['here', 'gain'], ['paper', 'gain']], width_ratios=[1, 1.25])
  width = 0.05 if max(found) < 2 else 0.25
  low = np.floor(min(found) / width) * width
  parts['here'].hist(found, np.arange(low, max(found) + width, width), color='#1f3a5f', edgecolor='white')
  parts['here'].set_title(f'here: {len(found)} languages, mean {statistics.fmean(found):.2f}', loc='left', fontsize=10)
  parts['paper'].bar(list(PAPER), list(PAPER.values()), width=0.55, color='#9db4d0')
  parts['paper'].set_title('the paper, read off Figure 8: 107 tasks, mean 5', loc='left', fontsize=10)
  parts['paper'].set_xlabel("step speed-up over the dense twin's final loss")
  for name in ('here', 'paper'):
    parts[name].set_ylabel('languages')
    parts[name].yaxis.get_major_locator().set_params(integer=True)
    parts[name].axvline(1, color='#5c5c5c', linewidth=1, linestyle='--')
  order = sorted(enough, key=lambda name: enough[name]['gain_mean'])
  for place, name in enumerate(order):
    mean, interval = enough[name]['gain_mean'], enough[name]['gain_interval']
    color = '#1f3a5f' if mean > interval else '#c8553d' if mean < -interval else '#b0b0b0'
    parts['gain'].errorbar(place, mean, 0 if np.isnan(interval) else interval, fmt='o', color=color, markersize=3.5,
                           elinewidth=1)  # fmt: skip
  ends = [abs(x['gain_mean']) + x['gain_interval'] for x in enough.values()]
  if np.isfinite(ends).all():  # three seeds make some intervals very wide; those are cut
    limit = 1.1 * np.quantile(ends, 0.95)
    parts['gain'].set_ylim(-limit, limit)
  parts['gain'].axhline(0, color='#5c5c5c', linewidth=1, linestyle='--')
  parts['gain'].set_xticks(range(len(order)), order, rotation=90, fontsize=5.5)
  parts['gain'].set_ylabel('lower held-out loss of mSwitch, nats a target token')
  parts['gain'].set_title(f'mean and 95 % t-interval over {len(result["seeds"])} seeds', loc='left', fontsize=10)
  parts['gain'].margins(x=0.01)
  for axes in parts.values():
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#e8e8e8')
    axes.set_axisbelow(True)
  figure.savefig(path, dpi=130)


def main():
  """Runs what is not finished yet; prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--out', type=pathlib.Path, default=runs.ROOT / 'runs' / 'multilingual_study', help='folder of the runs'
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=3200)
  parser.add_argument('--jobs', type=int, default=1, help='seeds that run at once')
  parser.add_argument('--table', action='store_true', help='run nothing')
  flags = runs.parse_flags(parser)
  if flags.shortened:
    flags.seeds, flags.steps = 1, runs.SHORT_STEPS
  flags.out = flags.out.resolve()
  flags.out.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  if not flags.table:
    with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
      print(f'training: {sum(pool.map(lambda seed: train(flags, seed), range(flags.seeds))):.0f} s', flush=True)
    report = flags.out / 'report.html'
    folders = [str(folder_of(flags, m, s)) for m in MODELS for s in range(flags.seeds)]
    runs.call(flags.out / 'report.log', [*folders, '--experts', f'--out={report}'], 'switch_jax.report')
    print(f'{report} shows all runs, with maps of experts by language')
  if (result := collect(flags)) is None:
    print('No seed has both models yet.')
    return 1
  (flags.out / 'results.json').write_text(json.dumps(result, indent=1))
  print(table(result))
  draw(result, flags.out / 'multilingual.png')
  print(f'{flags.out / "results.json"}, {flags.out / "multilingual.png"}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
