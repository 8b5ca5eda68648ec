"""`--run_mode=teacher`: the teacher's distributions over the batches of a run, written once."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
from etils import epath

from switch_jax import data
from switch_jax.config import ConfigError, RunConfig
from switch_jax.distillation.soft_targets import soft_targets
from switch_jax.distillation.teacher import Teacher
from switch_jax.distillation.teacher_logits import BATCHES_PER_FILE, TeacherLogitsWriter
from switch_jax.folders.claim import Claim
from switch_jax.folders.model_dir import OWNER
from switch_jax.model.placement import make_layout
from switch_jax.monitoring.interruption import EXIT_CODES, Interruption
from switch_jax.monitoring.progress import Progress
from switch_jax.parallel import Layout
from switch_jax.parallel.agreement import require_agreement
from switch_jax.parallel.compilation import compiled_by_all
from switch_jax.parallel.ownership import owned

# Batches between two records of what is written, from which a killed writer goes on.
_COMMIT_PERIOD = 8 * BATCHES_PER_FILE


def write_teacher_logits(run: RunConfig) -> int:
  """Writes the distributions of `run.distillation`'s teacher over the first `train_steps` batches of a run.

  Returns:
    The exit status: 0 when all are there, 143 after SIGTERM and 130 after Ctrl-C, to be continued.

  Raises:
    ConfigError: the run has no teacher or no folder for it, the teacher or the data cannot be read, the vocabularies
      differ, or the folder holds something else or is another process's.
  """
  config = run.distillation
  if config is None or config.teacher_logits is None:
    raise ConfigError(
      '--run_mode=teacher writes the logits of a teacher: add --gin_file=gin/runs/distill.gin, --gin.TEACHER_PATH and '
      '--gin.TEACHER_LOGITS=/some/dir.'
    )
  teacher = Teacher.open(config)
  teacher.check_rows(run)
  # The teacher alone has to divide over the mesh; the student comes later, perhaps on another one.
  layout = make_layout(dataclasses.replace(run, model=teacher.model, distillation=None, num_microbatches=1))
  progress = Progress(active=jax.process_index() == 0)
  progress.note(f'data: {run.data.mixture_or_task_name}')
  rows = layout.batch_sharding()
  source = data.open_training(run.data, run.random_seed, rows, run.model.vocab_size, run.model.is_decoder_only)
  place = epath.Path(config.teacher_logits) / OWNER
  try:
    require_agreement('data', source.fingerprint)
    teacher.check_vocabulary(run.model.vocab_size, data.describe_vocabulary(source.vocabulary))
    with owned(place, f'TEACHER_LOGITS {config.teacher_logits}', 'give another --gin.TEACHER_LOGITS') as claim:
      return _write(run, teacher, layout, source, progress, claim)
  finally:
    source.close()


# An annotation is text: looking it up would import TensorFlow.
def _write(
  run: RunConfig, teacher: Teacher, layout: Layout, source: 'data.TrainingSource', progress: Progress, claim: Claim
) -> int:
  config, vocab_size = run.distillation, run.model.vocab_size
  top_k = min(config.top_k or vocab_size, vocab_size)
  facts = {
    'data': json.loads(json.dumps(source.fingerprint)),
    'temperature': config.temperature,
    'top_k': top_k,
    'vocab_size': vocab_size,
    'teacher': teacher.record(),
  }
  writer = TeacherLogitsWriter(
    config.teacher_logits,
    facts,
    (run.data.batch_size, run.row_lengths['decoder'], top_k),
    run.train_steps,
    vocab_size,
    # Half precision is as much as a teacher in bfloat16 knows.
    'float32' if config.teacher_dtype == 'float32' else 'float16',
    run.data.batch_size // layout.num_token_shards,
  )
  if writer.batches >= run.train_steps:
    progress.note(f'{config.teacher_logits} has the logits of all {run.train_steps:,} batches; nothing to do.')
    return 0
  if writer.batches:
    progress.note(f'going on after {writer.batches:,} batches')
    source.restore_position(writer.position)
  progress.note(f'teacher: {teacher.facts.path}')
  params = teacher.load(layout)

  def step(params, batch):
    targets = soft_targets(teacher.logits(params, batch, layout), config.temperature, top_k)
    weights = batch['decoder_loss_weights'].astype(jnp.float32)
    kept = jnp.sum(weights * jnp.sum(jnp.exp(targets.log_probabilities), axis=-1))
    return targets, kept, jnp.sum(weights)

  shardings = (layout.batch_sharding(), layout.replicated(), layout.replicated())
  step = jax.jit(step, in_shardings=(jax.tree.map(lambda x: x.sharding, params), shardings[0]), out_shardings=shardings)
  step = compiled_by_all(step, 'teacher')
  progress.note('compiling the teacher')
  done, began, kept, tokens = writer.batches, time.perf_counter(), 0.0, 0.0
  progress.start(done, run.train_steps)
  sums = None
  with Interruption() as interruption:
    while done < run.train_steps:
      targets, *new = step(params, next(source))
      claim.check()
      writer.add(targets)
      if sums is not None:  # those of the batch before, so that the next one is already under way
        kept, tokens = kept + float(sums[0]), tokens + float(sums[1])
      done, sums = done + 1, new
      progress.update(done, tokens_per_second=tokens / (time.perf_counter() - began))
      stop = interruption.requested(done)
      if stop or done == run.train_steps or done % _COMMIT_PERIOD == 0:
        writer.commit(source.save_position)
      if stop and done < run.train_steps:
        progress.note(f'{stop}: {done:,} of {run.train_steps:,} batches are written; the same command goes on.')
        progress.close()
        return EXIT_CODES[stop]
  progress.close()
  kept, tokens = kept + float(sums[0]), tokens + float(sums[1])
  share = f'{100 * kept / max(tokens, 1.0):.2f} % of the probability'
  progress.note(
    f"{config.teacher_logits} has the teacher's {top_k} likeliest of {vocab_size} tokens, {share}, for {done:,} batches"
  )
  return 0
