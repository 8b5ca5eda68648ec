"""The step of `step_time.py` in Hugging Face's implementation, for `compare_step_time.py`.

Runs in an environment of its own with torch and transformers; makes a full training step (forward, backward,
Adafactor) for every line on standard input and prints its seconds.
"""

import argparse
import sys
import time

import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration
from transformers.optimization import Adafactor

BATCH, INPUTS, TARGETS, VOCABULARY = 16, 256, 64, 384


def main() -> None:
  """Makes steps on request."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--experts', type=int, required=True)
  parser.add_argument('--capacity_factor', type=float, default=1.25)
  parser.add_argument('--threads', type=int, default=2)
  arguments = parser.parse_args()
  torch.set_num_threads(arguments.threads)
  torch.manual_seed(0)
  config = SwitchTransformersConfig(
    vocab_size=VOCABULARY,
    d_model=256,
    num_heads=8,
    d_kv=32,
    d_ff=1024,
    num_layers=4,
    num_decoder_layers=4,
    num_sparse_encoder_layers=2,
    num_sparse_decoder_layers=2,
    num_experts=arguments.experts,
    # One capacity for both stacks and per sequence; the encoder's, which has most of the tokens.
    expert_capacity=int(INPUTS * arguments.capacity_factor / arguments.experts),
    dropout_rate=0.0,
    decoder_start_token_id=0,
  )
  model = SwitchTransformersForConditionalGeneration(config).train()
  optimizer = Adafactor(model.parameters(), lr=0.01, relative_step=False, scale_parameter=True, warmup_init=False)
  inputs = torch.randint(3, VOCABULARY, (BATCH, INPUTS))
  targets = torch.randint(3, VOCABULARY, (BATCH, TARGETS))

  def step() -> float:
    began = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    output = model(input_ids=inputs, labels=targets, output_router_logits=True)
    output.loss.backward()
    optimizer.step()
    return time.perf_counter() - began

  for _ in range(2):
    step()
  print('ready', flush=True)
  for _ in sys.stdin:
    print(step(), flush=True)


if __name__ == '__main__':
  main()
