"""Seconds of greedy decoding or beam search beside Hugging Face's `generate` in alternating runs, and by position.

  PYTHONPATH=$PWD python benchmarks/decoding_speed.py --peer_python /path/to/other/python

The model: 4 + 4 layers, d_model 256, 8 heads of 32, d_ff 1024, ReLU, every second feed-forward network sparse with 16
experts, vocabulary 384; 16 rows of 256 input tokens, 64 new tokens (EOS never chosen), float32. `--peer_python` is the
interpreter of an environment with `torch==2.13.0 transformers==5.23.0`. Ours runs as under `switch_jax.main`, with its
settings of malloc; both processes inherit this environment's variables, so that the peer gets the same settings if they
are there (`docs/cpu_step.md`). Each ratio is ours / theirs of two neighbouring runs; medians are printed, and what this
machine does in large products and copies.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
from compare_step_time import Worker

from switch_jax import launch
from switch_jax.config import DecodingConfig, ModelConfig, MoeConfig
from switch_jax.inference.decoding import Ids, make_decode
from switch_jax.inference.scoring import with_capacity
from switch_jax.model import init_parameters
from switch_jax.parallel import Layout

_HERE = pathlib.Path(__file__).parent
BATCH, INPUTS, NEW, VOCABULARY = 16, 256, 64, 384
NO_EOS = Ids(size=VOCABULARY, eos=-1)


def make_config(experts: int, dtype: str = 'float32') -> ModelConfig:
  """Returns the model of the benchmark; 0 experts is the dense T5."""
  model = ModelConfig(
    vocab_size=VOCABULARY,
    emb_dim=256,
    num_heads=8,
    head_dim=32,
    mlp_dim=1024,
    num_encoder_layers=4,
    num_decoder_layers=4,
    activation_dtype=dtype,
    moe=MoeConfig(num_experts=experts) if experts else None,
  )
  return with_capacity(model, None)


class Decoder:
  """The model, ready to decode a batch of random tokens."""

  def __init__(self, experts: int, beams: int = 1):
    self.config, self.layout = make_config(experts), Layout.single_device()
    self.params = init_parameters(self.config, self.layout, jax.random.key(0))
    self.decoding = DecodingConfig(method='beam', num_beams=beams) if beams > 1 else DecodingConfig()
    self.inputs = np.random.default_rng(0).integers(3, VOCABULARY, (BATCH, INPUTS), dtype=np.int32)

  def decode(self, length: int = NEW) -> float:
    """Decodes; returns the seconds."""
    function = make_decode(self.config, self.layout, self.decoding, NO_EOS, length)
    began = time.perf_counter()
    decoded = jax.block_until_ready(function(self.params, self.inputs, np.ones(BATCH, bool), np.arange(BATCH)))
    seconds = time.perf_counter() - began
    assert (np.asarray(decoded.tokens) > 0).all()
    return seconds


def time_by_position(decoder: Decoder, repeats: int) -> list[tuple[int, float]]:
  """Returns `(position, seconds per token there)`: the mean of 16 tokens up to it, within loops of the same cache.

  A loop ends where every row has chosen EOS, so the same program is stopped at different positions by declaring the
  batch's rows ended; here that is done by decoding lengths that share one cache size.
  """
  from switch_jax.model import Transformer
  from switch_jax.model.decoding import decode_step, empty_cache, start_memory

  config, layout = decoder.config, decoder.layout

  @jax.jit
  def prepare(params, inputs):
    encoded, _ = Transformer(config, layout).apply({'params': params}, inputs, method='encode')
    return start_memory(config, layout, params, encoded, inputs), empty_cache(config, layout, BATCH, 4 * NEW)

  @jax.jit
  def run(params, memory, cache, first):
    def body(i, carry):
      tokens, cache = carry
      logits, cache = decode_step(config, layout, params, tokens, cache, memory, first + i)
      return logits.argmax(-1).astype(np.int32), cache

    return jax.lax.fori_loop(0, 16, body, (np.zeros(BATCH, np.int32), cache))[0]

  memory, cache = jax.block_until_ready(prepare(decoder.params, decoder.inputs))
  seconds: dict[int, list[float]] = {first: [] for first in range(0, 4 * NEW, 48)}
  for i in range(repeats + 1):
    for first, found in seconds.items():
      began = time.perf_counter()
      jax.block_until_ready(run(decoder.params, memory, cache, first))
      if i:
        found.append((time.perf_counter() - began) / 16)
  return [(first, statistics.median(found)) for first, found in seconds.items()]


def main() -> None:
  """Times both and prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--peer_python')
  parser.add_argument('--experts', type=int, default=16)
  parser.add_argument('--beams', type=int, default=1, help='of beam search; 1 is greedy')
  parser.add_argument('--runs', type=int, default=10)
  parser.add_argument('--json')
  parser.add_argument('--serve', action='store_true', help='decode for each line on standard input, print its seconds')
  arguments = parser.parse_args()
  if arguments.serve:
    launch.restart_with_huge_pages()
    launch.keep_freed_memory()
    decoder = Decoder(arguments.experts, arguments.beams)
    for _ in range(2):
      decoder.decode()
    print('ready', flush=True)
    for _ in sys.stdin:
      print(decoder.decode(), flush=True)
    return
  subprocess.run([sys.executable, str(_HERE / 'machine_rates.py')], check=True)
  options = ['--experts', str(arguments.experts), '--beams', str(arguments.beams)]
  ours = Worker([sys.executable, str(pathlib.Path(__file__)), '--serve', *options])
  if arguments.peer_python:
    peer = Worker([arguments.peer_python, str(_HERE / 'huggingface_decoding.py'), *options])
    pairs = [(ours.step(), peer.step()) for _ in range(arguments.runs)]
    peer.close()
    ratios = [a / b for a, b in pairs]
    a, b, ratio = (statistics.median(values) for values in (*zip(*pairs, strict=True), ratios))
    print(f'ours {a:.3f} s, peer {b:.3f} s, ratio {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})', flush=True)
  else:
    pairs = [(ours.step(), None) for _ in range(arguments.runs)]
    print(f'ours {statistics.median(a for a, _ in pairs):.3f} s', flush=True)
  ours.close()
  if arguments.beams > 1:
    return
  by_position = time_by_position(Decoder(arguments.experts), arguments.runs)
  print('ms per token of the batch, from position: ' + ', '.join(f'{p}: {s * 1e3:.2f}' for p, s in by_position))
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps({'pairs': pairs, 'by_position': by_position}, indent=2))


if __name__ == '__main__':
  main()
