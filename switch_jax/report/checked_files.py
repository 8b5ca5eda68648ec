"""Files of a run as a report takes them: what has another shape than training and evaluation write is left out."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Test = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and (abs(value) < 1e300 or value != value)


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _list_of(test: Test) -> Test:
  return lambda value: isinstance(value, list) and all(map(test, value))


def _or_none(test: Test) -> Test:
  return lambda value: value is None or test(value)


def _object(**tests: Test) -> Test:
  """Returns the test of an object whose fields of these names pass theirs; a missing one is None."""
  return lambda value: isinstance(value, Mapping) and all(test(value.get(name)) for name, test in tests.items())


_COUNTS = _list_of(_is_count)
_COUNT = _or_none(_is_count)
_MODEL = _object(moe=_or_none(_object(num_experts=_COUNT, router=_or_none(_is_text))))
_RUN = _object(
  random_seed=_COUNT,
  train_steps=_COUNT,
  model=_or_none(_MODEL),
  data=_or_none(
    _object(mixture_or_task_name=_or_none(_is_text), feature_lengths=_or_none(lambda value: isinstance(value, Mapping)))
  ),
  optimizer=_or_none(_object()),
  loss=_or_none(_object()),
  initial_checkpoint_path=_or_none(_is_text),
  distillation=_or_none(lambda value: _object(teacher_path=_is_text)(value)),
)
_TEACHER = _object(path=_or_none(_is_text), step=_COUNT, parameters=_COUNT, identity=_or_none(_object()))
_RECORD = {
  'run': _or_none(_RUN),
  'model': _or_none(_MODEL),
  'vocabulary': _or_none(_object(digest=_or_none(_is_text), size=_COUNT)),
  'parameters': _COUNT,
  'teacher': _or_none(_TEACHER),
}
_FAVOURITE = _object(piece=_is_text, count=_is_count, of=_is_count)


def wrong_settings(record: Mapping[str, Any]) -> list[str]:
  """Returns the entries of a `config.json` that are not what training writes."""
  return [name for name, test in _RECORD.items() if not test(record.get(name))]


def is_metrics(line: Mapping[str, Any]) -> bool:
  """Whether a line of `metrics.jsonl` has numbers only; NaN is one."""
  return line['step'] >= 0 and line['step'] < 2**63 and all(map(_is_number, line.values()))


def is_expert_tokens(line: Mapping[str, Any]) -> bool:
  """Whether a line of `expert_tokens.jsonl` has lists of counts only, one count for each expert of a layer."""
  return _is_count(line['step']) and all(name == 'step' or (_COUNTS(v) and v) for name, v in line.items())


def is_experts(experts: Any) -> bool:
  """Whether this is what `switch_jax.inference.expert_affinity` measures: all lists of a layer of equal length."""
  fields = _object(
    step=_is_count,
    split=_is_text,
    batches=_is_count,
    groups=_list_of(_is_text),
    layers=lambda v: isinstance(v, Mapping),
  )
  return fields(experts) and all(_is_layer(layer, len(experts['groups'])) for layer in experts['layers'].values())


def _is_layer(layer: Any, groups: int) -> bool:
  bits = ('token_bits', 'token_bits_by_chance', *(('group_bits', 'group_bits_by_chance') if groups else ()))
  known = _object(
    expert_tokens=_COUNTS, favourites=_list_of(_list_of(_FAVOURITE)), **dict.fromkeys(bits, _is_finite),
    group_tokens=_list_of(_COUNTS) if groups else lambda value: value is None,
  )  # fmt: skip
  if not known(layer):
    return False
  experts = len(layer['expert_tokens'])
  by_group = layer.get('group_tokens') or []
  return len(layer['favourites']) == experts and (
    not groups or (len(by_group) == groups and all(len(row) == experts for row in by_group))
  )


def _is_finite(value: Any) -> bool:
  return _is_number(value) and math.isfinite(value)
