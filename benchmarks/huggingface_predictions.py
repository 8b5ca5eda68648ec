"""Predictions of an exported folder by `transformers` alone: a text a line in, the prediction of each out, all as JSON.

Runs in an environment of its own with torch and transformers, and uses the folder as docs/hugging_face.md says.
"""

import argparse
import json
import pathlib
import sys

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

BATCH = 32


def main() -> None:
  """Predicts what is on standard input."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('folder', type=pathlib.Path)
  folder = parser.parse_args().folder
  model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
  texts = [json.loads(line) for line in sys.stdin]
  for start in range(0, len(texts), BATCH):
    batch = tokenizer(texts[start : start + BATCH], padding=True, return_tensors='pt')
    for text in tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True):
      print(json.dumps(text))


if __name__ == '__main__':
  main()
