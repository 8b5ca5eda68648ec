"""Everything that the paper trains and measures on, by importing the modules that register it."""

from switch_jax.config import DataConfig
from switch_jax.tasks import c4, glue, question_answering, reasoning, summarization, super_glue

_MODULES = (c4, glue, super_glue, summarization, question_answering, reasoning)


def register(data: DataConfig | None = None) -> None:
  """Registers all tasks with the vocabulary of a configuration, or T5's."""
  for module in _MODULES:
    module.register(data)
