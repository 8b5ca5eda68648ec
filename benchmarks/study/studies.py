"""The studies: which claims of the paper each one tests, and how a claim is read off finished runs."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import measures

# What a claim measures for one seed: given the folder of each point by name, a number.
Measure = Callable[[Mapping[str, pathlib.Path]], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """A sentence of the paper as a number that is measured for each seed.

  Attributes:
    text: the claim.
    paper: what the paper measured.
    measure: the number of one seed.
    points: the points it needs.
    unit: of the number.
    above: the claim is that the mean is above this,
    near: or, if given, that it is between these two.
    spread: compare the standard deviations over the seeds of two points, which no single seed has.
  """

  text: str
  paper: str
  measure: Measure
  points: tuple[str, ...]
  unit: str = 'nats'
  above: float = 0.0
  near: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A sweep and its claims; `title` is what the paper has, `minutes` how long it takes on two cores."""

  title: str
  minutes: int
  claims: tuple[Claim, ...]
  files: tuple[str, ...] = ('base.gin',)
  needs: str | None = None  # another study, whose checkpoints it begins with


def gain(better: str, than: str, text: str, paper: str, **kwargs) -> Claim:
  """A claim about the held-out loss after the last step: how much lower it is."""

  def measure(folder):
    return measures.final_loss(folder[than]) - measures.final_loss(folder[better])

  return Claim(text=text, paper=paper, measure=measure, points=(better, than), **kwargs)


def fewer_steps(better: str, than: str, text: str, paper: str, above: float = 1.0) -> Claim:
  """A claim about how many times fewer steps one model needs for what another has after its last step."""

  def measure(folder):
    slow = measures.curve(folder[than])
    steps = measures.steps_to_reach(measures.curve(folder[better]), slow[-1][1])
    return slow[-1][0] / steps if steps else 0.0

  return Claim(text=text, paper=paper, measure=measure, points=(better, than), unit='times', above=above)


def lower(better: str, than: str, metric: str, text: str, paper: str, unit: str, **kwargs) -> Claim:
  """A claim about a metric of training: how much lower its mean is at the end."""

  def measure(folder):
    return measures.trained(folder[than], metric) - measures.trained(folder[better], metric)

  return Claim(text=text, paper=paper, measure=measure, points=(better, than), unit=unit, **kwargs)


# A difference smaller than this is none: a third of what the paper calls a large one (0.03 nats).
_SAME = (-0.01, 0.01)
_DROPPED = 'router/fraction_dropped'

STUDIES = {
  'experts': Study(
    title='experts at equal FLOPs (Figures 1 and 4, Appendix D)',
    minutes=130,
    claims=(
      fewer_steps('experts=64', 'dense', '64 experts need fewer steps for the loss of the dense model', '7.5 times'),
      fewer_steps('experts=64', 'dense', '... at least 3 times fewer', '7.5 times', above=3.0),
      gain('experts=1', 'dense', '1 expert is the dense model', '0', near=_SAME),
      gain('experts=2', 'dense', '2 experts beat the dense model', '0.02'),
      gain('experts=4', 'experts=2', '4 experts beat 2', '0.03'),
      gain('experts=8', 'experts=4', '8 experts beat 4', '0.04'),
      gain('experts=16', 'experts=8', '16 experts beat 8', '0.04'),
      gain('experts=32', 'experts=16', '32 experts beat 16', '0.03'),
      gain('experts=64', 'experts=32', '64 experts beat 32', '0.02'),
    ),
  ),
}
