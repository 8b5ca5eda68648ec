"""The cost of scanned layers, told by programs whose cost is known."""

import pytest

from switch_jax.config import DataConfig, ModelConfig, MoeConfig, RunConfig
from switch_jax.parallel import Layout
from switch_jax.plan.flops import forward_flops
from switch_jax.plan.loops import step_flops, turns

OUTSIDE, BODY = 1000.0, {'encoder': 7.0, 'decoder': 7.0}


def run_of(encoder=4, decoder=4, scan_layers=True, scan_unroll=1, moe=None):
  model = ModelConfig(
    vocab_size=8, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=4, num_encoder_layers=encoder,
    num_decoder_layers=decoder, scan_layers=scan_layers, scan_unroll=scan_unroll, moe=moe,
  )  # fmt: skip
  data = DataConfig(mixture_or_task_name='none', feature_lengths={'inputs': 8, 'targets': 4}, batch_size=2)
  return RunConfig(model_dir='none', model=model, data=data, train_steps=1, random_seed=0)


@pytest.mark.parametrize(
  ('run', 'expected'),
  [
    (run_of(), {'encoder': 4, 'decoder': 4}),
    (run_of(scan_layers=False), {}),
    (run_of(4, 6, scan_unroll=2), {'encoder': 2, 'decoder': 3}),
    (run_of(4, 2, scan_unroll=2), {'encoder': 2}),
    (run_of(4, 1), {'encoder': 4}),
    (run_of(8, 4, moe=MoeConfig(num_experts=2)), {'encoder': 4, 'decoder': 2}),
  ],
)
def test_turns(run, expected):
  assert turns(run.model) == expected


class Program:
  """Counts the body of a loop once, as XLA does; blocks in a turn, and layers one by one, all of them."""

  def __init__(self, run, body=None):
    self._run, self._body = run, body or BODY

  def cost_analysis(self):
    counts, model = turns(self._run.model), self._run.model
    total = OUTSIDE
    for stack, body in self._body.items():
      total += body * (model.scan_unroll if stack in counts else model.num_layers(stack))
    return {'flops': total}


def cost_of(run, body=None):
  notes = []
  compile_step = lambda run, layout: (Program(run, body), 0.0)  # noqa: E731
  return step_flops(run, Layout.single_device(), Program(run, body), compile_step, notes.append), notes


@pytest.mark.parametrize(
  ('run', 'how'),
  [
    (run_of(), ['compiling again with 2 blocks in a turn of the scan, to count FLOPs']),
    (run_of(9, 9), ['compiling again with 3 blocks in a turn of the scan, to count FLOPs']),
    (run_of(3, 3), ['compiling again with layers one by one, to count FLOPs']),
    (run_of(4, 3), ['compiling again with layers one by one, to count FLOPs']),
    (run_of(scan_layers=False), []),
  ],
)
def test_cost_is_that_of_all_layers(run, how):
  cost, notes = cost_of(run)
  assert notes == how
  total = OUTSIDE + 7 * (run.model.num_encoder_layers + run.model.num_decoder_layers)
  assert cost == pytest.approx(total)


def test_stacks_with_different_turns_share_the_sum_by_their_products():
  run = run_of(4, 8)
  forward = forward_flops(run, Layout.without_devices())
  body = {stack: forward[stack].layers / count for stack, count in {'encoder': 4, 'decoder': 8}.items()}
  cost, _ = cost_of(run, body)
  assert cost == pytest.approx(OUTSIDE + 4 * body['encoder'] + 8 * body['decoder'])


def test_a_compiler_that_counts_nothing():
  class Silent:
    def cost_analysis(self):
      return None

  assert step_flops(run_of(), Layout.single_device(), Silent(), None, None) is None
