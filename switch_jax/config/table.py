"""A task made of the rows of the user's own tables."""

import dataclasses
from typing import Literal

from switch_jax.config.named_objects import is_object_name
from switch_jax.config.validation import Checked, suggest

# What a task can be measured by, on texts; `switch_jax.tasks.named_metrics` computes them.
METRICS = (
  *('accuracy', 'f1', 'matthews', 'exact_match', 'token_f1', 'rouge', 'bleu', 'chrf'),
  *('pearson', 'spearman', 'correlation'),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableConfig(Checked):
  """Labelled rows of CSV, TSV, JSON-lines, Parquet and Arrow files, as a task for `switch_jax.tasks.table_files`.

  Attributes:
    files: glob pattern of the files (`gs://` too), or folders that the library `datasets` has saved, or the name of a
      data set on the Hugging Face hub, which that library fetches once.
    name: of the task; with several tables each needs its own.
    validation_files: pattern of the held-out rows; None holds out a share of `files`, by the hash of the inputs.
    held_out_fraction: that share.
    input_column: the column of the inputs; None guesses, and says so.
    template: text with `{column}` in it that makes the inputs of a row, in place of one column.
    target_column: the column of the targets; None guesses, and says so.
    labels: the targets there are: names, or a dictionary from what stands in the table to names. With names alone a
      column of whole numbers counts them from 0. None takes what stands there.
    metrics: names of `METRICS`, or your own as `module:function`, from lists of texts, targets and predictions, to
      numbers by name; None guesses from the targets.
    weight: how often the task is drawn where several are mixed, relative to the others'.
    skip_empty: leave out rows with an empty cell or NaN, in place of refusing the file.
    undecodable: whether text with bytes that are no UTF-8 is refused, or these are replaced by U+FFFD.
  """

  files: str
  name: str = 'my_task'
  validation_files: str | None = None
  held_out_fraction: float = 0.1
  input_column: str | None = None
  template: str | None = None
  target_column: str | None = None
  labels: tuple[str, ...] | dict[str, str] | dict[int, str] | None = None
  metrics: tuple[str, ...] | None = None
  weight: float = 1.0
  skip_empty: bool = False
  undecodable: Literal['refuse', 'replace'] = 'refuse'

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require(bool(self.files), 'files', "it must name files; set --gin.TASK_FILES='/some/dir/*.csv'.")
    rule = 'it must be letters, digits and underscores, as SeqIO wants it.'
    self.require(self.name.isidentifier() and self.name.isascii(), 'name', rule)
    rule = 'it must be greater than 0 and less than 1; 0.1 holds out a tenth.'
    self.require(0 < self.held_out_fraction < 1, 'held_out_fraction', rule)
    rule = f'template is {self.template!r}, which names the columns itself; leave one of them out.'
    self.require(self.template is None or self.input_column is None, 'input_column', rule)
    rule = 'it must have at least two labels; None takes what stands in the table.'
    names = self.labels.values() if isinstance(self.labels, dict) else self.labels
    self.require(names is None or len(set(names)) > 1, 'labels', rule)
    if not isinstance(self.labels, dict):
      self.require(names is None or len(set(names)) == len(names), 'labels', 'name each label once.')
    self.require_positive('weight')
    known = ', '.join(METRICS)
    self.require(self.metrics != (), 'metrics', f'give at least one of {known}; None guesses.')
    for name in self.metrics or ():
      rule = f"{name!r} is none of {known}, nor a function of your own as 'module:function'.{suggest(name, METRICS)}"
      self.require(name in METRICS or is_object_name(name), 'metrics', rule)
