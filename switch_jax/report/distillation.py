"""Tables 6 to 8 of the paper for the students among the runs: how much of the teacher's gain is kept, how small."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from switch_jax.config import flatten
from switch_jax.report.runs import Run
from switch_jax.report.series import Series, Spread, run_folder, spread

_LOSS = 'cross_ent_loss'
# What stands in a table where there is nothing.
NOTHING = '\N{EN DASH}'
# What a student and its dense control share, but for what distillation itself sets.
_SHARED = ('model', 'data', 'optimizer', 'loss')
# Where the text lies and how it is fed is no part of what is learnt.
_FEEDING = (
  'data.prefetch',
  'data.text_files',
  'data.tables',
  'data.vocabulary',
  'data.cached_tasks_dir',
  'data.task_module',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
  """One row of the table: the runs of a distilled model.

  Attributes:
    series: its runs.
    loss, teacher_loss, dense_loss: held-out losses after the last step (the teacher's: at the step that taught), over
      seeds.
    teacher_parameters, parameters: scalars of the models, None if not recorded.
    teacher, dense: the series compared with (of a teacher of another task: the run).
    share_kept: (dense - student) / (dense - teacher), paired by seed.
    compression: 1 - parameters / teacher's parameters, or None.
    missing: what cannot be told, and which run to add, in sentences.
  """

  series: Series
  loss: Spread
  teacher_loss: Spread
  dense_loss: Spread
  parameters: int | None
  teacher_parameters: int | None
  teacher: str
  dense: str
  share_kept: Spread
  compression: float | None
  missing: tuple[str, ...]


def is_student(run: Run) -> bool:
  """Whether a run is configured to learn from a teacher."""
  return bool(run.settings.get('distillation'))


def final_loss(run: Run, step: int | None = None) -> float:
  """Returns the held-out loss in nats per target token after the last evaluation, or after `step`; NaN if unknown."""
  lines = [line for line in run.held_out if _LOSS in line and (step is None or line['step'] == step)]
  return lines[-1][_LOSS] if lines else math.nan


def students(series: Sequence[Series], all_runs: Sequence[Run]) -> list[Student]:
  """Returns the rows for the students among the series of one task.

  Args:
    series: of the task.
    all_runs: every run of the report, where teachers are looked for.
  """
  labels = {run.name: s.label for s in series for run in s.runs}
  own = [run for s in series for run in s.runs]
  return [_student(s, own, all_runs, labels) for s in series if is_student(s.runs[0])]


def _student(series: Series, own: Sequence[Run], all_runs: Sequence[Run], labels: Mapping[str, str]) -> Student:
  missing: list[str] = []
  teachers, teacher_losses = [], []
  for run in series.runs:
    teacher, loss, problem = _teacher_of(run, own, all_runs)
    teachers.append(teacher)
    teacher_losses.append(loss)
    missing += [problem] if problem else []
  controls = [_control_of(run, own) for run in series.runs]
  for run, control in zip(series.runs, controls, strict=True):
    if control is None:
      seed = f', seed {run.seed}' if run.seed is not None else ''
      steps = run.settings.get('train_steps')
      missing.append(
        f'add the dense control of {run.name}: the same model, data, optimizer and {steps:,} steps{seed}, with '
        'config.RunConfig.distillation=None.'
      )
  losses = [final_loss(run) for run in series.runs]
  dense_losses = [final_loss(control) if control else math.nan for control in controls]
  gains = [dense - teacher for dense, teacher in zip(dense_losses, teacher_losses, strict=True)]
  shares = [
    (dense - loss) / gain if gain else math.nan for dense, loss, gain in zip(dense_losses, losses, gains, strict=True)
  ]
  if without := [run.name for run, gain in zip(series.runs, gains, strict=True) if gain <= 0]:
    missing.append(
      f'the teacher of {", ".join(without)} is no better than the dense control: there is no gain to keep.'
    )
    shares = []  # those of the other seeds alone would be the lucky ones
  parameters = next((run.parameters for run in series.runs if run.parameters), None)
  recorded = [_teacher_record(run).get('parameters') for run in series.runs]
  teacher_parameters = next((n for n in [*recorded, *(t.parameters for t in teachers if t)] if n), None)
  names = lambda found: ', '.join(dict.fromkeys(labels.get(run.name, run.name) for run in found if run)) or NOTHING  # noqa: E731
  return Student(
    series=series,
    loss=spread(losses),
    teacher_loss=spread(list({t.name: x for t, x in zip(teachers, teacher_losses, strict=True) if t}.values())),
    dense_loss=spread(dense_losses),
    parameters=parameters,
    teacher_parameters=teacher_parameters,
    teacher=names(teachers),
    dense=names(controls),
    share_kept=spread(shares),
    compression=1 - parameters / teacher_parameters if parameters and teacher_parameters else None,
    missing=tuple(dict.fromkeys(missing)),
  )


def _teacher_record(run: Run) -> dict[str, Any]:
  """What the student's checkpoint says of its teacher."""
  return run.record.get('teacher') or {}


def _teacher_of(student: Run, own: Sequence[Run], all_runs: Sequence[Run]) -> tuple[Run | None, float, str | None]:
  """Returns the teacher's run, its loss on this task at the step that taught, and what is missing."""
  record = _teacher_record(student)
  path = record.get('path') or student.settings['distillation']['teacher_path']
  homes = {run_folder(os.fspath(run.path)): run for run in all_runs}
  teacher = homes.get(run_folder(path))
  if teacher is None and (identity := record.get('identity')):
    teacher = next((run for run in all_runs if run.record.get('identity') == identity), None)
  if teacher is None:
    return None, math.nan, f'add the teacher of {student.name}: {path}.'
  if all(run is not teacher for run in own):
    return teacher, math.nan, (
      f'the teacher {teacher.name} was evaluated on {teacher.task} and not on {student.task}; add a teacher that was.'
    )  # fmt: skip
  loss = final_loss(teacher, record.get('step'))
  if not math.isfinite(loss):
    when = f' at step {record["step"]:,}, the one that taught' if record.get('step') is not None else ''
    return teacher, math.nan, f'the teacher {teacher.name} has no held-out loss{when}.'
  return teacher, loss, None


def _control_of(student: Run, own: Sequence[Run]) -> Run | None:
  """Returns the run with the student's model, data, optimizer, steps and seed, and without a teacher."""
  wanted = _shared(student)
  found = [run for run in own if run.settings and not is_student(run) and _shared(run) == wanted]
  begins = student.settings.get('initial_checkpoint_path')
  found.sort(key=lambda run: (run.settings.get('initial_checkpoint_path') != begins, run.name))
  return found[0] if found else None


def _shared(run: Run) -> dict[str, Any]:
  """Returns the settings that a student and its control have in common."""
  parts = {name: run.settings.get(name) or {} for name in _SHARED}
  parts |= {'train_steps': run.settings.get('train_steps'), 'random_seed': run.seed}
  flat = flatten(parts)
  return {name: value for name, value in flat.items() if name not in _FEEDING}
