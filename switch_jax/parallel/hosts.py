"""What the processes of a run tell each other."""

from typing import Any


def exchange(name: str, value: Any) -> list[Any]:
  """Returns the values of all processes, plain JSON, by their numbers; `name` says what is exchanged."""
  del name
  return [value]
