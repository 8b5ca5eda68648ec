"""SuperGLUE, each task and two mixtures, in T5's formats and with the metrics of the paper's Table 5.

From TensorFlow Datasets, `super_glue/NAME:1.0.2`; T5's vocabulary unless `VOCABULARY` names another. Registers

    super_glue_boolq_v102 ... super_glue_axg_v102       the tasks
    super_glue_wsc_v102_simple_train, ..._simple_eval   Winograd schemas as generation of the referent
    dpr_v001_simple                                     definite pronoun resolution, in the same format
    super_glue_v102_proportional                        weighted by training examples, as T5's
    super_glue_v102_by_tokens                           weighted by training tokens, as the paper's

The test splits come without labels.
"""

from switch_jax.tasks.text_to_text import add_task, mapped, plain
from switch_jax.tasks.tfds_source import TfdsSource

from switch_jax.config import DataConfig
from switch_jax.data.quiet_tensorflow import tf
from switch_jax.data.vocabularies import T5_VOCABULARY, make_vocabulary
from switch_jax.tasks import answers, formats, metrics, mixtures

_ENTAILED = ('entailment', 'not_entailment')
_FALSE_TRUE = ('False', 'True')
_PREMISE = ('hypothesis', 'premise')
# The sentences of axb play the parts of those of RTE.
_AXB_FIELDS = {'sentence2': 'hypothesis', 'sentence1': 'premise'}

# Name: the prefix of the text, its fields in order, the labels, the metrics.
CLASSIFICATION = {
  'boolq': ('boolq', ('passage', 'question'), _FALSE_TRUE, (metrics.accuracy,)),
  'cb': ('cb', _PREMISE, ('entailment', 'contradiction', 'neutral'), (metrics.mean_3class_f1, metrics.accuracy)),
  'copa': ('copa', ('choice1', 'choice2', 'premise', 'question'), ('choice1', 'choice2'), (metrics.accuracy,)),
  'rte': ('rte', _PREMISE, _ENTAILED, (metrics.accuracy,)),
  'wic': ('wic', ('sentence1', 'sentence2', 'word'), _FALSE_TRUE, (metrics.accuracy,)),
  'axb': ('rte', _AXB_FIELDS, _ENTAILED, ()),
  'axg': ('rte', _PREMISE, _ENTAILED, ()),
}
_ALL_SPLITS = ('train', 'validation', 'test')
# Training examples; those of ReCoRD count each right answer.
EXAMPLES = {
  'dpr_v001_simple': 1322.0,
  'super_glue_wsc_v102_simple_train': 259.0,
  'super_glue_wsc_v102_simple_eval': 0.0,
  'super_glue_boolq_v102': 9427.0,
  'super_glue_cb_v102': 250.0,
  'super_glue_copa_v102': 400.0,
  'super_glue_multirc_v102': 27243.0,
  'super_glue_record_v102': 138854.0,
  'super_glue_rte_v102': 2490.0,
  'super_glue_wic_v102': 5428.0,
  'super_glue_axb_v102': 0.0,
  'super_glue_axg_v102': 0.0,
}


@plain
def _only_referents(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Keeps the Winograd schemas whose candidate is what the pronoun refers to: only those can be generated."""
  return dataset.filter(plain(lambda example: tf.equal(example['label'], 1)))


def register(data: DataConfig | None = None) -> None:
  """Registers tasks and mixtures with the vocabulary of a configuration, or T5's."""
  vocabulary = make_vocabulary((data and data.vocabulary) or T5_VOCABULARY)

  def add(name, formatting, metric_fns, postprocess_fn, splits=_ALL_SPLITS):
    source = TfdsSource(f'super_glue/{name}:1.0.2', splits)
    add_task(f'super_glue_{name}_v102', source, formatting, vocabulary, metric_fns, postprocess_fn)

  for name, (prefix, fields, classes, metric_fns) in CLASSIFICATION.items():
    make = mapped(formats.labelled(prefix, fields, classes))
    add(name, [make], metric_fns, answers.label(classes), ('test',) if name in ('axb', 'axg') else _ALL_SPLITS)
  multirc_metrics = (metrics.multirc_f1, metrics.multirc_exact_match)
  add('multirc', [mapped(formats.multirc)], multirc_metrics, answers.multirc)
  add('record', [formats.record], (metrics.record,), answers.record)

  wsc, make = 'super_glue_wsc_v102_simple', mapped(formats.wsc)
  training, evaluation = (
    TfdsSource('super_glue/wsc.fixed:1.0.2', splits) for splits in (('train',), ('validation', 'test'))
  )
  add_task(f'{wsc}_train', training, [_only_referents, make], vocabulary)
  add_task(f'{wsc}_eval', evaluation, [make], vocabulary, (metrics.accuracy,), answers.wsc)
  pronouns = TfdsSource('definite_pronoun_resolution:1.1.0', ('train', 'test'))
  add_task('dpr_v001_simple', pronouns, [mapped(formats.definite_pronoun)], vocabulary, (metrics.accuracy,))
  mixtures.add_mixtures('super_glue_v102_proportional', 'super_glue_v102_by_tokens', EXAMPLES.items())


register()
