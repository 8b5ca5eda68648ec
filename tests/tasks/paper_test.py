"""One module registers everything that the paper trains and measures on."""

from switch_jax.data import providers
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.tasks import c4, glue, paper, question_answering, summarization, super_glue
from tests.tasks.paper_examples import CONFIG

TASKS = {
  *(c4.SPAN_CORRUPTION, c4.PREFIX_LM),
  *map(glue.task_name, (*glue.CLASSIFICATION, 'stsb')),
  *super_glue.EXAMPLES,
  *summarization.SUMMARIES,
  *('squad_v010_allanswers', *question_answering.CLOSED_BOOK),
  *('winogrande_xl', 'anli_r1', 'anli_r2', 'anli_r3', 'arc_easy', 'arc_challenge'),
}


def vocabularies():
  """Returns the vocabularies of both sides of the tasks."""
  features = [seqio.TaskRegistry.get(name).output_features for name in TASKS]
  return [feature[side].vocabulary for feature in features for side in ('inputs', 'targets')]


def test_all_tasks_take_the_vocabulary_of_the_configuration():
  providers.import_task_module(CONFIG)
  assert {type(vocabulary) for vocabulary in vocabularies()} == {seqio.ByteVocabulary}
  paper.register(None)
  found = {vocabulary.sentencepiece_model_file for vocabulary in vocabularies()}
  assert found == {'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'}
