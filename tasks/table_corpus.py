"""The rows of the user's tables as corpora in the cache: checked from end to end, split, and kept as pairs of texts."""

import collections
from collections.abc import Callable, Iterator

from etils import epath
from switch_jax.tasks.table_recipe import BUILDER_VERSION, Recipe, check_encodings, make_recipe

from switch_jax.config import ConfigError, TableConfig, suggest
from switch_jax.data import corpus, tables, templates, text_lines
from switch_jax.tasks import text_files

SEPARATOR = '\x1f'  # between inputs and target in a line of the corpus
# Where so few inputs are different, those that are held out are chosen and not left to chance.
_FEW = 100_000


class _Problems:
  """What is wrong with rows: the first of each kind, and how many there are."""

  def __init__(self) -> None:
    self._first: dict[str, tuple[str, str]] = {}
    self._counts: collections.Counter[str] = collections.Counter()

  def add(self, kind: str, said: str, remedy: str) -> None:
    self._first.setdefault(kind, (said, remedy))
    self._counts[kind] += 1

  def check(self) -> None:
    """Raises a `ConfigError` if there is any."""
    for kind, (said, remedy) in self._first.items():
      more = self._counts[kind] - 1
      raise ConfigError(f'{said}{f" (and {more:,} more rows of that kind)" if more else ""}; {remedy}')


def _examples(path: epath.Path, recipe: Recipe, problems: _Problems) -> Iterator[tuple[str, str]]:
  """Yields inputs and target of the rows of a file that are whole."""
  fields = templates.fields_of(recipe.template)
  for row in tables.read_rows(path, recipe.undecodable):
    place = f'{path}:{row.number}'
    if row.cells is None:
      problems.add('malformed', f'{place} {row.error}', 'mend it.')
      continue
    texts: dict[str, str] = {}
    for name in (*fields, recipe.target):
      try:
        text = templates.to_text(row.cells.get(name))
      except ValueError as error:
        problems.add('type', f'{place} has in the column {name!r} {error}', 'make it text, or use another column.')
        break
      if text is None:
        if not recipe.skip_empty:
          problems.add(
            'empty',
            f'{place} has nothing (an empty cell or NaN) in the column {name!r}',
            'fill it, or leave such rows out: --gin.SKIP_EMPTY=True.',
          )
        break
      texts[name] = text.replace(SEPARATOR, ' ')
    else:
      target = texts[recipe.target]
      if recipe.labels is not None and target not in recipe.labels:
        names = list(dict.fromkeys(recipe.labels.values()))
        problems.add(
          'label',
          f'{place} has the label {target[:60]!r} in the column {recipe.target!r}',
          f'the labels are {", ".join(names)}.{suggest(target, names)} Mend it, or set LABELS.',
        )
        continue
      yield templates.fill(recipe.template, texts), recipe.labels[target] if recipe.labels else target


def _choose_held_out(recipe: Recipe, fraction: float) -> Callable[[str], bool]:
  """Reads all rows; returns which inputs are held out.

  Raises:
    ConfigError: something is wrong with a row, or there are too few.
  """
  problems, hashes, counts = _Problems(), set[int](), collections.Counter[str]()
  for files, split in ((recipe.train, corpus.TRAIN), (recipe.held_out, corpus.VALIDATION)):
    for path in files:
      for inputs, _ in _examples(path, recipe, problems):
        counts[split] += 1
        if split == corpus.TRAIN and len(hashes) < _FEW:
          hashes.add(corpus.hash_text(inputs))
  problems.check()
  if not counts[corpus.TRAIN] or (recipe.held_out and not counts[corpus.VALIDATION]):
    what = 'the files of validation_files have' if counts[corpus.TRAIN] else f'{recipe.train[0]} has'
    raise ConfigError(f'{what} no row with inputs and a target; put some in.')
  if recipe.held_out:
    return lambda inputs: False
  if len(hashes) < 2:
    raise ConfigError(
      f'{recipe.train[0]} has only one input in its {counts[corpus.TRAIN]} rows, so none can be held out; use more '
      'rows, or set --gin.VALIDATION_FILES.'
    )
  chosen = {key for key in hashes if key < fraction * 2**64}
  if len(hashes) == _FEW or fraction / 2 <= len(chosen) / len(hashes) <= 2 * fraction:
    return lambda inputs: corpus.is_held_out(inputs, fraction)
  lowest = sorted(hashes)[: min(max(1, round(fraction * len(hashes))), len(hashes) - 1)]
  return lambda inputs: corpus.hash_text(inputs) <= lowest[-1]


def get_corpus(table: TableConfig) -> tuple[corpus.Corpus, Recipe]:
  """Returns the pairs of texts of a table, reading it if it is not in the cache yet.

  Raises:
    ConfigError: what `make_recipe` raises, or something is wrong with a row.
  """
  recipe = make_recipe(table)

  def write(writer: corpus.CorpusWriter) -> None:
    is_held_out = _choose_held_out(recipe, table.held_out_fraction)
    for files, always in ((recipe.train, None), (recipe.held_out, corpus.VALIDATION)):
      for path in files:
        for inputs, target in _examples(path, recipe, _Problems()):
          split = always or (corpus.VALIDATION if is_held_out(inputs) else corpus.TRAIN)
          writer.add(f'{inputs}{SEPARATOR}{target}', split)

  try:
    return corpus.get_corpus('tables', recipe.identity(), write, held_out_fraction=table.held_out_fraction), recipe
  except text_lines.EncodingError:
    check_encodings([*recipe.train, *recipe.held_out], recipe.undecodable)
    raise


def get_text_corpus(table: TableConfig) -> corpus.Corpus:
  """Returns the inputs of a table, for span corruption, split as the table is."""
  pairs, _ = get_corpus(table)

  def write(writer: corpus.CorpusWriter) -> None:
    for split in (corpus.TRAIN, corpus.VALIDATION):
      for line in pairs.paragraphs(split):
        for piece in text_files.cut(line.partition(SEPARATOR)[0]):
          writer.add(piece, split)

  made_of = {'builder': BUILDER_VERSION, 'pairs': pairs.digest}
  return corpus.get_corpus('tables_text', made_of, write, held_out_fraction=table.held_out_fraction)
