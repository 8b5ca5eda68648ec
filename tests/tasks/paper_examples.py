"""The tasks of the paper over bytes, on examples of one's own and on mock data of the real schemas."""

from switch_jax.config import DataConfig
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.tasks import formats

LENGTHS = {'inputs': 40, 'targets': 12}
CONFIG = DataConfig(
  mixture_or_task_name='glue_cola_v002',
  task_module='switch_jax.tasks.paper',
  feature_lengths=LENGTHS,
  batch_size=2,
  vocabulary='bytes',
)


def made(make, **example):
  """Returns inputs and targets of one example as text."""
  tensors = tf.nest.map_structure(tf.constant, example)
  result = make(tensors)
  return result['inputs'].numpy().decode(), result['targets'].numpy().decode()


def classified(module, name, **example):
  """Returns inputs and targets of one example of a classification task of GLUE or SuperGLUE."""
  prefix, fields, classes, _ = module.CLASSIFICATION[name]
  return made(formats.labelled(prefix, fields, classes), idx=7, **example)


def check_task(name):
  """Checks a task on the examples there are: lengths, EOS, and metrics that take what postprocessing returns."""
  task = seqio.get_mixture_or_task(name)
  split = next(iter(task.splits))
  examples = list(task.get_dataset(LENGTHS, split=split, shuffle=False, try_in_mem_cache=False).as_numpy_iterator())
  assert examples
  for example in examples:
    for feature, length in LENGTHS.items():
      tokens = example[feature]
      assert 1 <= len(tokens) <= length
      assert tokens[-1] == 1  # trimmed texts keep their EOS
    if task.postprocess_fn and example['targets_pretokenized'] != b'<unk>':
      text = example['targets_pretokenized'].decode()
      target = task.postprocess_fn(text, example=example, is_target=True)
      prediction = task.postprocess_fn(text, example=example, is_target=False)
      for metric in task.metric_fns:
        assert all(value == value or 'corrcoef' in key for key, value in metric([target], [prediction]).items())
