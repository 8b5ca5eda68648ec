"""C4 as T5 was pre-trained on it: `c4_v220_span_corruption`, `c4_v220_prefix_lm`, and `c4_v220_lm` without inputs.

From TensorFlow Datasets, `c4/en:2.2.0`; T5's vocabulary unless `VOCABULARY` names another.
"""

from switch_jax.tasks.text_to_text import features_of, remove_task
from switch_jax.tasks.tfds_source import TfdsSource, unlabelled_text

from switch_jax.config import DataConfig
from switch_jax.data.language_model import language_model
from switch_jax.data.prefix_lm import prefix_lm
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.span_corruption import span_corruption
from switch_jax.data.vocabularies import T5_VOCABULARY, make_vocabulary

SPAN_CORRUPTION = 'c4_v220_span_corruption'
PREFIX_LM = 'c4_v220_prefix_lm'
LM = 'c4_v220_lm'
_SOURCE = TfdsSource('c4/en:2.2.0', ('train', 'validation'))


def register(data: DataConfig | None = None) -> None:
  """Registers the tasks with the vocabulary of a configuration, or T5's."""
  vocabulary = make_vocabulary((data and data.vocabulary) or T5_VOCABULARY)
  features = features_of(vocabulary)
  of_targets = {'targets': features['targets']}
  for name, preprocessors, output_features in (
    (SPAN_CORRUPTION, unlabelled_text(span_corruption), features),
    (PREFIX_LM, unlabelled_text(prefix_lm), features),
    (LM, unlabelled_text(language_model)[:-1], of_targets),  # it appends EOS itself, where a document ends
  ):
    remove_task(name)
    seqio.TaskRegistry.add(
      name,
      source=_SOURCE,
      preprocessors=preprocessors,
      output_features=output_features,
      metric_fns=[],
    )


register()
