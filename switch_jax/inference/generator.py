"""Texts to texts with a trained model, in batches of one shape."""

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from switch_jax import data
from switch_jax.config import ConfigError, DecodingConfig, MeshConfig
from switch_jax.inference.decoding import Ids, make_decode
from switch_jax.inference.loading import LoadedModel, check_batch_size, latest_step, load_model, open_store
from switch_jax.inference.scoring import with_capacity

_logger = logging.getLogger(__name__)
# The shortest inputs a program is compiled for; longer ones go up by factors of two.
_SHORTEST = 32
_BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a model made of one text.

  Attributes:
    text: the prediction.
    score: its log probability; of beam search normalised by the length (see `decoding.Decoded`).
    was_cut: the text was longer than the model's inputs, and its end, or the beginning of one that a decoder-only model
      goes on with, was not read.
  """

  text: str
  score: float
  was_cut: bool


def decode_batch(
  model: LoadedModel,
  decoding: DecodingConfig,
  ids: Ids,
  length: int,
  rows: Sequence[np.ndarray] | np.ndarray,
  numbers: Sequence[int],
  batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes at most `batch_size` rows of inputs in a batch that empty rows fill up.

  Args:
    model: its configuration's evaluation capacity holds in the encoder.
    decoding, ids, length: see `decoding.decode`.
    rows: int `[n, inputs length]`.
    numbers: of the examples, from which samples are drawn.
    batch_size: rows of the batch.

  Returns:
    The best hypothesis of each row, int32 `[n, length]`, and its score, float32 `[n]`.
  """
  rows = np.asarray(rows, np.int32)
  missing = batch_size - len(rows)
  tokens = np.pad(rows, ((0, missing), (0, 0)))
  present = np.arange(batch_size) < len(rows)
  numbers = np.pad(np.asarray(numbers, np.int32), (0, missing))
  function = make_decode(model.config, model.layout, decoding, ids, length)
  decoded = jax.device_get(function(model.params, tokens, present, numbers))
  return decoded.tokens[: len(rows), 0], decoded.score[: len(rows), 0]


def _lengths_in_row(recorded: Mapping[str, int], given: Mapping[str, int | None]) -> dict[str, int]:
  """Returns the lengths of what a decoder-only model reads and of what it adds, which share a row of training.

  Args:
    recorded: the `feature_lengths` of its run; nothing of a converted model. Where they have no inputs, half of the row
      is for each.
    given: by the user, None where not.

  Raises:
    ConfigError: they are more than the row.
  """
  lengths = {name: length for name, length in given.items() if length is not None}
  if row := sum(recorded.values()):
    usual = recorded if 'inputs' in recorded else {'inputs': row // 2, 'targets': row - row // 2}
    for name, other in (('inputs', 'targets'), ('targets', 'inputs')):
      lengths.setdefault(name, min(usual[name], row - (given[other] or 0)))
    if min(lengths.values()) < 1 or sum(lengths.values()) > row:
      raise ConfigError(
        f'inputs_length is {lengths["inputs"]} and targets_length {lengths["targets"]}; a decoder-only model has both '
        f'in one row, and this one was trained on rows of {row} tokens: give at least 1 each, {row} at most together.'
      )
  return lengths


@functools.cache
def _say_eos_is_assumed(path: str, is_mixed: bool) -> None:
  """Says once of a checkpoint that nothing tells whether its task ended inputs with EOS."""
  why = 'the tasks of its mixture differ in that' if is_mixed else 'it is of an older version, or was converted'
  _logger.warning(
    'config.json of %s does not say whether inputs end with EOS (%s): EOS is appended; add_eos=False leaves it out.',
    path,
    why,
  )


class Generator:
  """Makes texts of texts: `Generator.from_checkpoint(model_dir)(['...', '...'])`.

  A text is tokenised, EOS is appended if the task of the checkpoint did that, and what is longer than the inputs is cut
  (EOS stays). The empty string is a text of EOS alone and gets a prediction like any other. Bytes know every character;
  with a SentencePiece vocabulary an unseen one becomes the unknown token. `<extra_id_0>` is a sentinel with both.
  Nothing is dropped by Switch layers.

  A decoder-only model goes on with the text, and what it adds is returned. Where no EOS is appended, as after a model
  that was trained on targets alone, it is the newest tokens of a text that are read if it is too long, and the empty
  string is a row that has not begun.
  """

  def __init__(
    self,
    model: LoadedModel,
    vocabulary: Any,
    *,
    inputs_length: int,
    targets_length: int,
    decoding: DecodingConfig | None = None,
    batch_size: int | None = None,
    add_eos: bool = True,
  ):
    """Takes a model as it is; see `from_checkpoint`.

    Raises:
      ConfigError: the vocabulary has more ids than the model, or the batch does not divide over the mesh.
    """
    if vocabulary.vocab_size > model.config.vocab_size:
      raise ConfigError(
        f'the vocabulary has {vocabulary.vocab_size} ids and the model {model.config.vocab_size}; they do not belong '
        'together.'
      )
    shards = model.layout.num_token_shards
    if batch_size is not None:
      check_batch_size(batch_size, model.layout, 'Generator')
    self._model = dataclasses.replace(model, config=with_capacity(model.config, None))
    self._vocabulary = vocabulary
    self._ids = Ids(size=vocabulary.vocab_size, eos=vocabulary.eos_id)
    self._inputs_length, self._targets_length, self._add_eos = inputs_length, targets_length, add_eos
    self._keeps_end = model.config.is_decoder_only and not add_eos
    self._decoding = decoding or DecodingConfig()
    self.batch_size = batch_size or -(-_BATCH_SIZE // shards) * shards

  @classmethod
  def from_checkpoint(
    cls,
    model_dir: str | os.PathLike[str],
    step: int | None = None,
    *,
    vocabulary: str | None = None,
    decoding: DecodingConfig | None = None,
    mesh: MeshConfig | None = None,
    inputs_length: int | None = None,
    targets_length: int | None = None,
    batch_size: int | None = None,
    add_eos: bool | None = None,
  ) -> Self:
    """Reads a checkpoint of a run, trained on whatever mesh.

    Args:
      model_dir: the run's folder.
      step: which checkpoint; None is the newest.
      vocabulary: 'bytes', 'byt5', 'byt5_huggingface' or the path of a SentencePiece model, for checkpoints that do not
        record theirs (converted ones); None is what the checkpoint records.
      decoding: greedy by default.
      mesh: of all devices; by default the experts are split over as many as divide them.
      inputs_length, targets_length: in tokens; None is what the run was trained with. Of one trained on targets
        alone each is half of a row.
      batch_size: texts decoded at once.
      add_eos: whether EOS is appended to a text; None is what the task of the checkpoint did.

    Raises:
      ConfigError: no such folder or checkpoint, it does not record its vocabulary or its lengths, or those that are
        given are longer than the row of a decoder-only model.
    """
    store = open_store(model_dir)
    step = latest_step(store) if step is None else step
    record = store.read_config(step)
    if vocabulary is not None:
      found = data.make_vocabulary(vocabulary)
      data.check_vocabulary(found)
    elif record.get('vocabulary'):
      found = data.load_vocabulary(record['vocabulary'], store.model_dir)
    else:
      raise ConfigError(
        f'config.json of {store.path(step)} records no vocabulary (it was converted, perhaps); give vocabulary: '
        "'bytes' or the path of its SentencePiece model."
      )
    lengths = record.get('run', {}).get('data', {}).get('feature_lengths', {})
    given = {'inputs': inputs_length, 'targets': targets_length}
    decoder_only = record.get('model', {}).get('num_encoder_layers') == 0
    if decoder_only:
      lengths = _lengths_in_row(lengths, given)
    lengths |= {name: length for name, length in given.items() if length is not None}
    for name in given:
      if name not in lengths:
        raise ConfigError(f'config.json of {store.path(step)} records no length of {name}; give {name}_length.')
    if add_eos is None:
      add_eos = data.recorded_add_eos(record, 'inputs')
    if add_eos is None and decoder_only and 'inputs' not in (record.get('features') or {}):
      add_eos = False  # a text that is gone on with
    if add_eos is None:
      _say_eos_is_assumed(str(store.path(step)), 'features' in record)
    model = load_model(store, step, mesh or MeshConfig())
    return cls(
      model,
      found,
      inputs_length=lengths['inputs'],
      targets_length=lengths['targets'],
      decoding=decoding,
      batch_size=batch_size,
      add_eos=add_eos is not False,
    )

  @property
  def model(self) -> LoadedModel:
    """The model that is used."""
    return self._model

  def __call__(self, texts: Sequence[str]) -> list[str]:
    """Returns a prediction for each text, in their order."""
    return [prediction.text for prediction in self.predict(texts)]

  def predict(self, texts: Sequence[str], numbers: Sequence[int] | None = None) -> list[Prediction]:
    """Returns predictions with their scores.

    Args:
      texts: any strings; one string alone is an error.
      numbers: of the texts, 0, 1, 2 by default. A sample is a function of the seed and this number, not of the batch.

    Raises:
      ConfigError: `texts` is no list of strings.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
      raise ConfigError(f'a Generator takes a list of strings, and was given {str(texts)[:60]!r}.')
    rows = [self._tokenise(text) for text in texts]
    numbers = range(len(rows)) if numbers is None else numbers
    found: list[Prediction] = []
    for first in range(0, len(rows), self.batch_size):
      batch = rows[first : first + self.batch_size]
      width = self._width(max(len(row) for row, _ in batch))
      tokens = np.stack([np.pad(row, (0, width - len(row))) for row, _ in batch])
      which = numbers[first : first + len(batch)]
      targets, scores = decode_batch(
        self._model, self._decoding, self._ids, self._targets_length, tokens, which, self.batch_size
      )
      for target, score, (row, was_cut) in zip(targets, scores, batch, strict=True):
        text = self._text(target, row if self._keeps_end else ())
        found.append(Prediction(text, float(score), was_cut))
    return found

  def _tokenise(self, text: str) -> tuple[np.ndarray, bool]:
    # Half of a surrogate pair, which JSON can hold, is no character.
    tokens = data.encode_text(self._vocabulary, text.encode('utf-8', 'replace').decode('utf-8'))
    room = self._inputs_length - self._add_eos
    kept = tokens[-room:] if self._keeps_end else tokens[:room]
    return np.array([*kept, *([self._ids.eos] * self._add_eos)], np.int32), len(tokens) > room

  def _text(self, tokens: np.ndarray, before: Sequence[int] | np.ndarray = ()) -> str:
    # SentencePiece leaves out a space at the beginning; after other tokens it is there.
    decode = lambda *ids: data.decode_tokens(self._vocabulary, [int(token) for token in ids if token > 0])  # noqa: E731
    return decode(*before, *tokens)[len(decode(*before)) :]

  def _width(self, length: int) -> int:
    """Returns the length that inputs are padded to: few different ones, so that few programs are compiled."""
    width = _SHORTEST
    while width < length:
      width *= 2
    return min(width, self._inputs_length)
