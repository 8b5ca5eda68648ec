"""Whether short texts train as they are: random files of 20, 60 and 100 kB, a sentence a line, no blank lines.

  python -m benchmarks.short_texts             20 files of each size, 3 steps each; eight minutes of one core
  python -m benchmarks.short_texts --steps=0   only opens training and evaluation

Each is trained with the lengths and the batch size of `gin/examples/my_text.gin`. Printed is what each says of its text
when it begins, and its losses. Exit status 1 if one is refused.
"""

import argparse
import pathlib
import random
import sys
import tempfile
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from switch_jax import config, data
from switch_jax.folders.metric_lines import read_metrics
from switch_jax.training.loop import train

MODEL = config.ModelConfig(
  vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1,
  moe=config.MoeConfig(num_experts=2, encoder_layers=1, decoder_layers=()),
)  # fmt: skip


def make_text(size: int, seed: int) -> str:
  """Returns sentences of made-up words, one a line, of `size` ASCII characters in all."""
  chance = random.Random(seed)
  words = [''.join(chance.choices('etaoinshrdlu', k=chance.randint(2, 9))) for _ in range(500)]
  lines, length = [], 0
  while length <= size:
    lines.append(' '.join(chance.choices(words, k=chance.randint(4, 25))).capitalize() + '.')
    length += len(lines[-1]) + 1
  return '\n'.join(lines)[: size - 1] + '\n'


def run_of(text_files: pathlib.Path | str, model_dir: pathlib.Path | str, steps: int, **fields) -> config.RunConfig:
  """Returns a run on text files with a tiny model; `fields` are further ones of its `DataConfig`."""
  text = config.DataConfig(
    mixture_or_task_name='text_files_span_corruption', task_module='switch_jax.tasks.text_files',
    text_files=str(text_files), **{'feature_lengths': {'inputs': 64, 'targets': 14}, 'batch_size': 64} | fields,
  )  # fmt: skip
  return config.RunConfig(
    model_dir=str(model_dir), model=MODEL, data=text, train_steps=max(steps, 1), random_seed=0, eval_period=None,
    eval_steps=4, log_period=1, checkpoint=config.CheckpointConfig(period=max(steps, 1)),
  )  # fmt: skip


def open_batches(run: config.RunConfig) -> str:
  """Takes a batch to train on and those of an evaluation; returns what is said of the text.

  Raises:
    ConfigError: the text is refused.
  """
  rows = NamedSharding(Mesh(jax.devices()[:1], ('data',)), PartitionSpec('data'))
  source = data.open_training(run.data, 0, rows)
  try:
    next(source)
    assert len(data.open_evaluation(run.data, rows, run.eval_steps)) > 0
    return source.description
  finally:
    source.close()


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--sizes', type=int, nargs='+', default=[20_000, 60_000, 100_000], help='bytes')
  parser.add_argument('--files', type=int, default=20, help='files of each size')
  parser.add_argument('--steps', type=int, default=3, help='steps to train on each; 0 opens them only')
  flags = parser.parse_args(argv)
  refused = 0
  with tempfile.TemporaryDirectory(prefix='short_texts_') as folder:
    root = pathlib.Path(folder)
    if flags.steps:  # one compilation for all
      jax.config.update('jax_compilation_cache_dir', str(root / 'compiled'))
      jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    for size in flags.sizes:
      for seed in range(flags.files):
        path = root / f'{size}_{seed}.txt'
        path.write_text(make_text(size, seed))
        run = run_of(path, path.with_suffix(''), flags.steps)
        try:
          line = open_batches(run)
          if flags.steps:
            found = train(run)
            losses = [metrics['loss'] for metrics in read_metrics(found.model_dir.train / 'metrics.jsonl')]
            held_out = found.held_out['cross_ent_loss_text']
            line += f'; losses {" ".join(f"{loss:.3f}" for loss in losses)}, held out {held_out:.3f}'
        except config.ConfigError as error:
          refused, line = refused + 1, f'refused: {error}'
        print(f'{path.name}: {line}', flush=True)
  print(f'{len(flags.sizes) * flags.files} files, {refused} refused')
  return 1 if refused else 0


if __name__ == '__main__':
  sys.exit(main())
