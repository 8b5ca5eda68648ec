"""A tiny task, its configuration, and a sharding over the emulated devices."""

import importlib
import random

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from switch_jax.config import DataConfig

WORDS = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven', 'twelve')


@pytest.fixture(scope='session')
def rows_sharding() -> NamedSharding:
  """Rows over eight devices."""
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('data', 'expert'))
  return NamedSharding(mesh, PartitionSpec(('data', 'expert')))


@pytest.fixture(scope='session')
def text_pattern(tmp_path_factory) -> str:
  """The pattern of a text file of 60 kB, 1,000 paragraphs that are all different."""
  chance = random.Random(0)
  paragraphs = [f'{i} ' + ' '.join(chance.choices(WORDS, k=10)) for i in range(1000)]
  path = tmp_path_factory.mktemp('text') / 'words.txt'
  path.write_text('\n\n'.join(paragraphs))
  return str(path)


@pytest.fixture(scope='session')
def config(text_pattern) -> DataConfig:
  """Span corruption of that text in batches of 8 rows, 64 inputs and 15 targets."""
  return DataConfig(
    mixture_or_task_name='text_files_span_corruption',
    task_module='switch_jax.tasks.text_files',
    feature_lengths={'inputs': 64, 'targets': 15},
    batch_size=8,
    text_files=text_pattern,
    shuffle_buffer_size=50,
  )


@pytest.fixture
def add_copy_task(tmp_path):
  """Returns a function that registers a task whose inputs and targets are the lines of its files."""
  seqio = importlib.import_module('switch_jax.data.quiet_tensorflow').seqio
  names = []

  def add(name, files, preprocessors=(), **kwargs):
    paths = []
    for i, lines in enumerate(files):
      paths.append(tmp_path / f'{name}_{i}.txt')
      paths[-1].write_text(''.join(f'{line}\n' for line in lines))
    vocabulary = seqio.ByteVocabulary(extra_ids=100)
    seqio.TaskRegistry.add(
      name,
      source=kwargs.pop('source', None) or seqio.TextLineDataSource({'train': [str(path) for path in paths]}),
      preprocessors=[
        lambda dataset: dataset.map(lambda line: {'inputs': line, 'targets': line}),
        seqio.preprocessors.tokenize,
        *preprocessors,
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features={feature: seqio.Feature(vocabulary) for feature in ('inputs', 'targets')},
      **kwargs,
    )
    names.append(name)
    return DataConfig(mixture_or_task_name=name, feature_lengths={'inputs': 16, 'targets': 16}, batch_size=8)

  yield add
  for name in names:
    seqio.TaskRegistry.remove(name)
