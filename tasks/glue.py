"""GLUE, each task and two mixtures, in T5's formats and with the metrics of the paper's Table 5.

From TensorFlow Datasets, `glue/NAME:1.0.0`; T5's vocabulary unless `VOCABULARY` names another. Registers

    glue_cola_v002 ... glue_ax_v002       the twelve tasks
    glue_v002_proportional                weighted by training examples, as T5's
    glue_v002_by_tokens                   weighted by training tokens, as the paper's

Both mixtures train on eight tasks (WNLI is left out, as by T5) and evaluate MNLI on its two validation sets. The test
splits come without labels.
"""

from switch_jax.tasks.text_to_text import add_task, mapped
from switch_jax.tasks.tfds_source import TfdsSource

from switch_jax.config import DataConfig
from switch_jax.data.vocabularies import T5_VOCABULARY, make_vocabulary
from switch_jax.tasks import answers, formats, metrics, mixtures

_PAIR = ('sentence1', 'sentence2')
_ENTAILMENT = ('entailment', 'neutral', 'contradiction')
_ENTAILED = ('entailment', 'not_entailment')
_F1_AND_ACCURACY = (metrics.f1, metrics.accuracy)

# Name: the prefix of the text, its fields in order, the labels, the metrics.
CLASSIFICATION = {
  'cola': ('cola', ('sentence',), ('unacceptable', 'acceptable'), (metrics.matthews_corrcoef,)),
  'sst2': ('sst2', ('sentence',), ('negative', 'positive'), (metrics.accuracy,)),
  'mrpc': ('mrpc', _PAIR, ('not_equivalent', 'equivalent'), _F1_AND_ACCURACY),
  'qqp': ('qqp', ('question1', 'question2'), ('not_duplicate', 'duplicate'), _F1_AND_ACCURACY),
  'mnli': ('mnli', ('hypothesis', 'premise'), _ENTAILMENT, (metrics.accuracy,)),
  'mnli_matched': ('mnli', ('hypothesis', 'premise'), _ENTAILMENT, (metrics.accuracy,)),
  'mnli_mismatched': ('mnli', ('hypothesis', 'premise'), _ENTAILMENT, (metrics.accuracy,)),
  'qnli': ('qnli', ('question', 'sentence'), _ENTAILED, (metrics.accuracy,)),
  'rte': ('rte', _PAIR, _ENTAILED, (metrics.accuracy,)),
  'wnli': ('wnli', _PAIR, ('not_entailment', 'entailment'), (metrics.accuracy,)),
  'ax': ('mnli', ('hypothesis', 'premise'), _ENTAILMENT, ()),
}
_SPLITS = {
  'mnli': ('train', 'validation_matched', 'validation_mismatched', 'test_matched', 'test_mismatched'),
  'mnli_matched': ('validation', 'test'),
  'mnli_mismatched': ('validation', 'test'),
  'ax': ('test',),
}
# Training examples.
EXAMPLES = {
  'cola': 8551.0,
  'sst2': 67349.0,
  'mrpc': 3668.0,
  'qqp': 363849.0,
  'stsb': 5749.0,
  'mnli': 392702.0,
  'qnli': 104743.0,
  'rte': 2490.0,
  'mnli_matched': 0.0,
  'mnli_mismatched': 0.0,
  'ax': 0.0,
}


def task_name(name: str) -> str:
  """Returns the name of a task in SeqIO's registry."""
  return f'glue_{name}_v002'


def register(data: DataConfig | None = None) -> None:
  """Registers tasks and mixtures with the vocabulary of a configuration, or T5's."""
  vocabulary = make_vocabulary((data and data.vocabulary) or T5_VOCABULARY)

  def add(name, make, metric_fns, postprocess_fn):
    source = TfdsSource(f'glue/{name}:1.0.0', _SPLITS.get(name, ('train', 'validation', 'test')))
    add_task(task_name(name), source, [mapped(make)], vocabulary, metric_fns, postprocess_fn)

  for name, (prefix, fields, classes, metric_fns) in CLASSIFICATION.items():
    add(name, formats.labelled(prefix, fields, classes), metric_fns, answers.label(classes))
  add('stsb', formats.stsb, (metrics.pearson_corrcoef, metrics.spearman_corrcoef), answers.number)
  examples = [(task_name(name), count) for name, count in EXAMPLES.items()]
  mixtures.add_mixtures('glue_v002_proportional', 'glue_v002_by_tokens', examples)


register()
