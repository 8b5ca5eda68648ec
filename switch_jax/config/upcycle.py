"""How a model with experts begins from one without, or with another number of them."""

import dataclasses

from switch_jax.config.validation import Checked


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpcycleConfig(Checked):
  """Sparse upcycling: experts are copies of a dense model's feed-forward network, or of other experts.

  A Switch layer multiplies an expert's output by its gate, which is about 1 / num_experts under a new router, so copies
  alone would shrink every such layer. `compensate_gate` multiplies the copied output kernels by the number of copies:
  with drop-free routing a new Switch layer then computes `num_experts * gate` times the dense network's output, which
  is the dense function as far as the router is uniform; without it, `gate` times. Where the gates of a token have
  another sum (`topk`, sigmoid scores) they are divided by that.

  Attributes:
    compensate_gate: multiply the copies' output kernel by the number of copies made of each network.
    router_stddev: standard deviation of new router weights, and of what is added to the columns of copied experts so
      that copies are told apart. Small ones keep all gates near 1 / num_experts.
    seed: of the new router weights.
  """

  compensate_gate: bool = True
  router_stddev: float = 1e-3
  seed: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_at_least(0, 'seed')
    self.require_positive('router_stddev')
