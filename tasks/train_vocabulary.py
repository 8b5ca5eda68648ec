"""Trains a SentencePiece vocabulary in T5's layout.

    python -m switch_jax.tasks.train_vocabulary --text_files='/data/books/*.txt' --out=vocabulary.model
    python -m switch_jax.tasks.train_vocabulary --demo --size=4000 --out=vocabulary.model
    python -m switch_jax.tasks.train_vocabulary --multilingual --size=16000 --out=vocabulary.model

Unigram pieces with byte fallback, so that any text can be written and read back; padding is 0, EOS 1, unknown 2, and
there is no beginning-of-sequence. The 100 ids that stand for masked spans are not in the file: SeqIO puts them on top,
so a model of 32,000 pieces is a vocabulary of 32,100 ids, like T5's. The same text gives the same model.
"""

import argparse
import hashlib
import io
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from switch_jax.config import ConfigError
from switch_jax.data import corpus
from switch_jax.folders.cache import cache_directory

T5_SIZE = 32_000
# 256 bytes, 3 special ids, and something to write words with.
MIN_SIZE = 300
# SentencePiece skips longer lines; ours are cut, so that no text is left out.
MAX_LINE_CHARACTERS = 2000
# Lines that are looked at; of a longer text a random choice of so many.
MAX_LINES = 1_000_000


def _short_lines(texts: Iterable[str]) -> Iterator[str]:
  """Yields the lines of texts, those that are too long cut at spaces."""
  for text in texts:
    for line in text.split('\n'):
      while len(line) > MAX_LINE_CHARACTERS:
        cut = line.rfind(' ', 1, MAX_LINE_CHARACTERS)
        cut = cut if cut > 0 else MAX_LINE_CHARACTERS
        yield line[:cut]
        line = line[cut:].lstrip(' ')
      if line.strip():
        yield line


def train(texts: Iterable[str], size: int) -> bytes:
  """Returns a SentencePiece model as the bytes of its file.

  Args:
    texts: paragraphs or documents.
    size: pieces, with bytes and the three special ids, without the extra ids.

  Raises:
    ConfigError: the size is below 300, or there is too little text for it.
  """
  import sentencepiece

  if size < MIN_SIZE:
    raise ConfigError(
      f'--size is {size}; with 256 bytes and 3 special ids it must be at least {MIN_SIZE}; T5 has {T5_SIZE}.'
    )
  model = io.BytesIO()
  sentencepiece.set_random_generator_seed(0)
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_short_lines(texts),
      model_writer=model,
      model_type='unigram',
      vocab_size=size,
      byte_fallback=True,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      max_sentence_length=4 * MAX_LINE_CHARACTERS + 4,  # in bytes
      input_sentence_size=MAX_LINES,
      shuffle_input_sentence=True,
      num_threads=1,  # with more, sums are added in another order every time
      minloglevel=2,
    )
  except RuntimeError as error:
    reason = str(error).rsplit('] ', maxsplit=1)[-1].strip() or 'there is no text'
    raise ConfigError(
      f'SentencePiece makes no vocabulary of {size} pieces of this text: {reason} Use a smaller --size or more text.'
    ) from error
  return model.getvalue()


def get_cached(digest: str, size: int, texts: Callable[[], Iterable[str]]) -> str:
  """Returns the path of a model in the cache folder, which is trained first if it is not there.

  Args:
    digest: identifies the text.
    size: pieces.
    texts: gives the paragraphs.

  Raises:
    ConfigError: the cache folder cannot be written.
  """
  import sentencepiece

  key = hashlib.sha256(f'{digest} {size} {sentencepiece.__version__}'.encode()).hexdigest()[:20]
  place = cache_directory() / 'vocabularies' / f'{key}.model'
  if not place.exists():
    draft = corpus.make_draft_folder(place.parent)
    (draft / place.name).write_bytes(train(texts(), size))
    (draft / place.name).replace(place)
    draft.rmdir()
  return str(place)


def _texts(flags: argparse.Namespace) -> Iterator[str]:
  """Yields the paragraphs that the flags name."""
  from switch_jax.tasks import multilingual_text, text_files, wikipedia

  if flags.multilingual:
    yield from multilingual_text.balanced()
    return
  if flags.demo:
    yield from wikipedia.get_corpus(wikipedia.SPAN_CORRUPTION).paragraphs(corpus.TRAIN)
    return
  for path in text_files.find_files(flags.text_files):
    yield from text_files.read_file(path)


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are the user's configuration errors."""

  def error(self, message):
    raise ConfigError(f'{message}; see --help.')


def _run(argv: Sequence[str]) -> None:
  parser = _Parser(
    prog='python -m switch_jax.tasks.train_vocabulary', description=__doc__.split('\n')[0], allow_abbrev=False
  )
  parser.add_argument('--text_files', metavar='PATTERN', help='pattern of .txt and .jsonl files, in quotes')
  parser.add_argument('--demo', action='store_true', help='the openings of Wikipedia articles that the demo trains on')
  parser.add_argument('--multilingual', action='store_true', help="the demo's hundred languages, evened out as in mT5")
  parser.add_argument('--size', type=int, default=T5_SIZE, help=f'number of pieces (default: {T5_SIZE})')
  parser.add_argument('--out', required=True, metavar='FILE', help='where the model is written')
  flags = parser.parse_args(argv)
  if flags.demo + flags.multilingual + (flags.text_files is not None) != 1:
    raise ConfigError("give one of --text_files='/some/dir/*.txt', --demo and --multilingual.")
  out = pathlib.Path(flags.out).expanduser()
  if out.is_dir() or not out.parent.is_dir():
    raise ConfigError(f'--out is {flags.out}, which is a folder or lies in none; name a file in a folder that exists.')
  model = train(_texts(flags), flags.size)
  try:
    out.write_bytes(model)
  except OSError as error:
    raise ConfigError(f'--out is {flags.out}, which cannot be written ({error.strerror}); name another.') from error
  print(
    f'{out}: {flags.size:,} pieces, {flags.size + 100:,} ids with the 100 extra ones, {len(model):,} bytes. '
    f'Use it with --gin.VOCABULARY={out} and a vocab_size of at least {flags.size + 100:,}.'
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  try:
    _run(sys.argv[1:] if argv is None else argv)
  except ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main())
