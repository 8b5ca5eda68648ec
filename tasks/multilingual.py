"""Pre-training in a hundred languages, and what to fine-tune on: from text that pip brings, or mC4 in full size.

Registers, when `register` is called with a configuration,

    multilingual_span_corruption    103 languages, from installed packages (extra demo): `multilingual_text`
    multilingual_language_id        text -> code of its language, same corpus; accuracy, over all and by language
    mc4_span_corruption, mc4.de ... the mixture of mC4's 107 tasks and each of them: `mc4`

A language is drawn with a probability proportional to its size to the power 0.3, as in mT5
(`config.DataConfig.sampling_exponent`); `config.DataConfig.languages` restricts the languages. Every token carries its
language, so evaluation reports `cross_ent_loss/de`, `target_tokens/de`, ... beside the loss of all.

The local corpus is tokenised once into the cache folder. Its vocabulary is bytes unless `VOCABULARY` names a
SentencePiece model; `python -m switch_jax.tasks.train_vocabulary --multilingual` makes one.
"""

import functools
import hashlib
import json

from switch_jax.config import DataConfig
from switch_jax.data import corpus, sampled_groups, span_corruption, token_streams
from switch_jax.data.vocabularies import BYTES, make_vocabulary
from switch_jax.tasks import language_id, languages, mc4, multilingual_text

SPAN_CORRUPTION = 'multilingual_span_corruption'
READS_LANGUAGES = True  # the fields languages and sampling_exponent of the configuration


def get_streams(data: DataConfig) -> tuple[token_streams.TokenStreams, token_streams.TokenStreams]:
  """Returns the tokens of the training and of the held-out split, of the languages of a configuration.

  Raises:
    ConfigError: a package is not installed, there is no such language, or the cache folder cannot be written.
  """
  made = multilingual_text.get_corpus()
  vocabulary = make_vocabulary(data.vocabulary or BYTES)

  def read(split: str) -> token_streams.TokenStreams:
    texts = functools.partial(multilingual_text.tagged, made, split)
    return token_streams.get_token_streams(f'{made.digest} {split}', texts, vocabulary)

  train, held_out = read(corpus.TRAIN), read(corpus.VALIDATION)
  if data.languages is not None:
    chosen = languages.choose(data.languages, train.names, SPAN_CORRUPTION)
    train, held_out = train.select(chosen), held_out.select(chosen)
  return train, held_out


def _exponent(data: DataConfig) -> float:
  return sampled_groups.SAMPLING_EXPONENT if data.sampling_exponent is None else data.sampling_exponent


def register(data: DataConfig) -> None:
  """Registers the task that the configuration names, and those beside it.

  Raises:
    ConfigError: a package is not installed, there is no such language, or the cache folder cannot be written.
  """
  name = data.mixture_or_task_name
  if mc4.is_name(name):
    mc4.register(data)
    return
  if name == language_id.NAME:
    language_id.register(data)
    return
  train, held_out = get_streams(data)
  source = sampled_groups.SampledGroups(
    train, held_out, raw_length=span_corruption.find_raw_length(data.feature_lengths), exponent=_exponent(data)
  )
  vocabulary = make_vocabulary(data.vocabulary or BYTES)
  sampled_groups.add_sampled_task(SPAN_CORRUPTION, source, vocabulary, train.names, data.feature_lengths)


def corpus_digest(data: DataConfig) -> str:
  """Returns what identifies the text, its split, the languages, and how they are drawn."""
  if mc4.is_name(data.mixture_or_task_name):
    return mc4.corpus_digest(data)
  if data.mixture_or_task_name == language_id.NAME:
    return language_id.corpus_digest(data)
  train, _ = get_streams(data)
  facts = [multilingual_text.get_corpus().digest, train.names, _exponent(data), sampled_groups.VERSION]
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
