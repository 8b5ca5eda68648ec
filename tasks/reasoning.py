"""Winogrande XL, ANLI (all three rounds) and ARC (Easy and Challenge), with the accuracy of the generated text.

From TensorFlow Datasets; T5's vocabulary unless `VOCABULARY` names another. The paper does not print its formats for
these; `tasks/formats.py` has ours. Registers `winogrande_xl`, `anli_r1`, `anli_r2`, `anli_r3`, `arc_easy` and
`arc_challenge`.
"""

from switch_jax.tasks.text_to_text import add_task, mapped
from switch_jax.tasks.tfds_source import TfdsSource

from switch_jax.config import DataConfig
from switch_jax.data.vocabularies import T5_VOCABULARY, make_vocabulary
from switch_jax.tasks import answers, formats, metrics

ANLI_LABELS = ('entailment', 'neutral', 'contradiction')
_ALL_SPLITS = ('train', 'validation', 'test')


def register(data: DataConfig | None = None) -> None:
  """Registers the tasks with the vocabulary of a configuration, or T5's."""
  vocabulary = make_vocabulary((data and data.vocabulary) or T5_VOCABULARY)

  def add(name, source, make, postprocess_fn=None):
    add_task(name, source, [mapped(make)], vocabulary, [metrics.accuracy], postprocess_fn)

  splits = {'train': 'train_xl', 'validation': 'validation', 'test': 'test'}
  add('winogrande_xl', TfdsSource('winogrande:1.2.0', splits), formats.winogrande)
  for anli in ('r1', 'r2', 'r3'):
    make = formats.labelled('anli', {'hypothesis': 'hypothesis', 'context': 'premise'}, ANLI_LABELS)
    add(f'anli_{anli}', TfdsSource(f'anli/{anli}:0.1.0', _ALL_SPLITS), make, answers.label(ANLI_LABELS))
  for name, part in (('arc_easy', 'ARC-Easy'), ('arc_challenge', 'ARC-Challenge')):
    add(name, TfdsSource(f'ai2_arc/{part}:1.0.0', _ALL_SPLITS), formats.arc)


register()
