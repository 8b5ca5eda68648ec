"""C4 as T5 was pre-trained on it: `c4_v220_span_corruption` and `c4_v220_prefix_lm`.

From TensorFlow Datasets, `c4/en:2.2.0`; T5's vocabulary unless `VOCABULARY` names another.
"""

from switch_jax.tasks.text_to_text import features_of, remove_task
from switch_jax.tasks.tfds_source import TfdsSource, unlabelled_text

from switch_jax.config import DataConfig
from switch_jax.data.prefix_lm import prefix_lm
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.span_corruption import span_corruption
from switch_jax.data.vocabularies import T5_VOCABULARY, make_vocabulary

SPAN_CORRUPTION = 'c4_v220_span_corruption'
PREFIX_LM = 'c4_v220_prefix_lm'
_SOURCE = TfdsSource('c4/en:2.2.0', ('train', 'validation'))


def register(data: DataConfig | None = None) -> None:
  """Registers the tasks with the vocabulary of a configuration, or T5's."""
  vocabulary = make_vocabulary((data and data.vocabulary) or T5_VOCABULARY)
  for name, objective in ((SPAN_CORRUPTION, span_corruption), (PREFIX_LM, prefix_lm)):
    remove_task(name)
    seqio.TaskRegistry.add(
      name,
      source=_SOURCE,
      preprocessors=unlabelled_text(objective),
      output_features=features_of(vocabulary),
      metric_fns=[],
    )


register()
