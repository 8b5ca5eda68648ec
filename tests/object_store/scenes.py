"""Runs every mode and tool on `gs://`, in one process: `python -m tests.object_store.scenes STEPS LOCAL_FOLDER`.

What must hold is checked here where it is about the commands, and by the test about what lies in the bucket.
"""

import json
import pathlib
import sys
import threading

import jax
import numpy as np
from etils import epath

from switch_jax import convert, interop, main
from switch_jax.monitoring.metric_files import MetricFiles
from switch_jax.report import __main__ as report
from switch_jax.sweep import __main__ as sweep
from switch_jax.sweep import runner

BUCKET = 'gs://bucket'
TASK = 'text_files_span_corruption'
SHRUNK = [
  '--gin_file=gin/examples/my_text.gin',
  f'--gin.TEXT_FILES={BUCKET}/in/*.txt',
  f'--gin.VOCABULARY={BUCKET}/in/pieces.model',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 12}",
  '--gin.BATCH_SIZE=8',
  '--gin.LOG_PERIOD=1',
  '--gin.CHECKPOINT_PERIOD=3',
  '--gin.EVAL_PERIOD=2',
  '--gin.EVAL_STEPS=1',
  '--gin.config.ModelConfig.emb_dim=16',
  '--gin.config.ModelConfig.mlp_dim=32',
  '--gin.config.ModelConfig.num_heads=2',
  '--gin.NUM_EXPERTS=2',
]
RUN = f'{BUCKET}/run'
LINES = ['a b c', 'd e', 'f', 'g h', 'i']


def equal(targets, predictions):
  return {'equal': np.mean([t == p for t, p in zip(targets, predictions, strict=True)])}


def register(data):
  """Registers the task `repeat`, which wants its inputs back."""
  from switch_jax.data.quiet_tensorflow import seqio, tf
  from switch_jax.data.vocabularies import make_vocabulary

  def source(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices({'inputs': LINES, 'targets': LINES})

  feature = seqio.Feature(make_vocabulary(data.vocabulary))
  seqio.TaskRegistry.add(
    'repeat',
    source=seqio.FunctionDataSource(source, splits=('train', 'validation')),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={'inputs': feature, 'targets': feature},
    metric_fns=[equal],
  )


def succeed(command, *arguments):
  """Runs a command line in this process; it must end with 0."""
  status = command([str(argument) for argument in arguments])
  assert status == 0, (status, arguments)


def train(folder, steps, *more):
  succeed(main.main, *SHRUNK, f'--gin.MODEL_DIR={folder}', f'--gin.TRAIN_STEPS={steps}', *more)
  assert not [t.name for t in threading.enumerate() if t.name.startswith('switch_jax')]


def evaluate():
  more = [f'--gin.MODEL_DIR={RUN}', '--gin.MIXTURE_OR_TASK_NAME=repeat', f'--gin.VOCABULARY={BUCKET}/in/pieces.model']
  lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8}"
  module = '--gin.config.DataConfig.task_module=tests.object_store.scenes'
  succeed(main.main, '--run_mode=eval', '--gin_file=gin/runs/eval.gin', *more, lengths, module, '--gin.BATCH_SIZE=8')


def predict(step):
  """Predicts for a file, stopped in the middle and continued."""
  from switch_jax.inference import prediction_files

  place, output = epath.Path(BUCKET) / 'lines', f'{BUCKET}/out/predictions.jsonl'
  place.mkdir(parents=True, exist_ok=True)
  (place / 'in.jsonl').write_text(''.join(json.dumps({'inputs': text}) + '\n' for text in LINES))
  arguments = [
    '--run_mode=infer', '--gin_file=gin/runs/infer.gin', f'--gin.MODEL_DIR={RUN}', f'--gin.STEP={step}',
    f'--gin.INPUT_FILE={place}/in.jsonl', f'--gin.OUTPUT_FILE={output}', '--gin.BATCH_SIZE=2',
  ]  # fmt: skip
  written = prediction_files._Output.write

  def stop(self, records):
    written(self, records)
    raise KeyboardInterrupt

  prediction_files._Output.write = stop
  assert main.main(arguments) == 130
  prediction_files._Output.write = written
  begun = epath.Path(f'{output}.partial').read_text()
  assert begun.endswith('\n')
  succeed(main.main, *arguments)
  assert epath.Path(output).read_text().startswith(begun)
  succeed(main.main, *arguments)  # says that it is there


def teach(steps, local):
  """Writes a teacher's logits, and trains a student on them."""
  distil = [
    '--gin_file=gin/runs/distill.gin', f'--gin.TEACHER_PATH={RUN}', f'--gin.TEACHER_LOGITS={BUCKET}/logits',
    '--gin.TEACHER_DTYPE=float32', '--gin.TOP_K=8',
  ]  # fmt: skip
  arguments = [*SHRUNK, *distil, f'--gin.TRAIN_STEPS={steps}', f'--gin.MODEL_DIR={BUCKET}/student']
  succeed(main.main, '--run_mode=teacher', *arguments)
  succeed(main.main, *arguments)


def convert_both_ways(step, local):
  """From the bucket and to it, in all formats; the parameters stay the same."""
  whole = interop.load('switch_jax', f'{RUN}/checkpoints/{step}')[1]
  source = f'switch_jax:{RUN}/checkpoints/{step}'
  for format in ('switch_jax', 't5x', 'huggingface'):
    target = f'{BUCKET}/made/{format}'
    succeed(convert.main, f'--from={source}', f'--to={format}:{target}', '--optimizer_state=drop')
    succeed(convert.main, f'--from={source}', f'--to={format}:{local}/{format}', '--optimizer_state=drop')
    assert convert.main([f'--from={source}', f'--to={format}:{target}']) == 1  # it exists
    if format != 'huggingface':  # which reads local folders
      made = interop.load(format, target)[1]
      jax.tree.map(np.testing.assert_array_equal, made, whole)


def sweep_there(local):
  """A sweep whose MODEL_DIRs are in the bucket; its one run does nothing."""
  (local / 'sweep.gin').write_text(
    'from __gin__ import dynamic_registration\nfrom switch_jax import config\nconfig.SweepConfig.seeds = (0,)\n'
  )
  runner._COMMAND = ('-c', 'pass')
  arguments = [*SHRUNK, '--gin.TRAIN_STEPS=1', f'--sweep={local}/sweep.gin', f'--out={BUCKET}/sweep']
  succeed(sweep.main, *arguments)
  succeed(sweep.main, *arguments, '--table')


def grow():
  """Lines of metrics that are sent five at a time."""
  files = MetricFiles(f'{BUCKET}/grow')
  for step in range(1, 101):
    files.write(step, {'loss': 0.5, 'accuracy': 0.25})
    if step % 5 == 0:
      files.flush()
  files.close()


def scenes(steps, local):
  grow()
  train(RUN, steps)
  train(local / 'run', steps)
  evaluate()
  predict(steps)
  teach(3, local)
  convert_both_ways(steps, local)
  sweep_there(local)
  succeed(report.main, RUN, f'{BUCKET}/student', f'--out={BUCKET}/report.html')


if __name__ == '__main__':
  scenes(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
  print('all scenes done')
