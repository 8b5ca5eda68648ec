"""The decoding of `decoding_speed.py` in Hugging Face's implementation.

Runs in an environment of its own with torch and transformers; decodes one batch with `generate` for every line on
standard input and prints its seconds.
"""

import argparse
import sys
import time

import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

BATCH, INPUTS, NEW, VOCABULARY = 16, 256, 64, 384


def main() -> None:
  """Decodes on request."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--experts', type=int, default=16)
  parser.add_argument('--beams', type=int, default=1)
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
    expert_capacity=BATCH * INPUTS,  # nothing is dropped, here as there
    dropout_rate=0.0,
    decoder_start_token_id=0,
  )
  model = SwitchTransformersForConditionalGeneration(config).eval()
  inputs = torch.randint(3, VOCABULARY, (BATCH, INPUTS))

  def decode() -> float:
    began = time.perf_counter()
    with torch.inference_mode():
      output = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        num_beams=arguments.beams, use_cache=True,
      )  # fmt: skip
    assert output.shape == (BATCH, NEW + 1), output.shape
    return time.perf_counter() - began

  for _ in range(2):
    decode()
  print('ready', flush=True)
  for _ in sys.stdin:
    print(decode(), flush=True)


if __name__ == '__main__':
  main()
