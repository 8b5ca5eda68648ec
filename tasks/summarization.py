"""Summaries: `cnn_dailymail_v002` (T5's) and `xsum_v110`, with Rouge.

From TensorFlow Datasets, `cnn_dailymail:3.4.0` and `xsum:1.1.0` (whose source has to be fetched by hand, as TFDS says);
T5's vocabulary unless `VOCABULARY` names another.
"""

from switch_jax.tasks.text_to_text import add_task, mapped
from switch_jax.tasks.tfds_source import TfdsSource

from switch_jax.config import DataConfig
from switch_jax.data.vocabularies import T5_VOCABULARY, make_vocabulary
from switch_jax.tasks import formats, metrics

# Name: the data set, and its fields of the text and the summary.
SUMMARIES = {
  'cnn_dailymail_v002': ('cnn_dailymail:3.4.0', 'article', 'highlights'),
  'xsum_v110': ('xsum:1.1.0', 'document', 'summary'),
}


def register(data: DataConfig | None = None) -> None:
  """Registers the tasks with the vocabulary of a configuration, or T5's."""
  vocabulary = make_vocabulary((data and data.vocabulary) or T5_VOCABULARY)
  for name, (tfds_name, article, highlights) in SUMMARIES.items():
    source = TfdsSource(tfds_name, ('train', 'validation', 'test'))
    add_task(name, source, [mapped(formats.summary(article, highlights))], vocabulary, [metrics.rouge])


register()
