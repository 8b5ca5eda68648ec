"""Writes the files of a run as training does, without training."""

import json

import pytest

from switch_jax.report.runs import find_folders, names_of, read_run

TASK = 'some_task'
MODEL = {'vocab_size': 384, 'emb_dim': 64, 'moe': None}


def settings(folder, seed=0, **changes):
  """The configuration of a run as JSON; `changes` are dotted names."""
  run = {
    'model_dir': str(folder),
    'model': dict(MODEL),
    'data': {'mixture_or_task_name': TASK, 'feature_lengths': {'inputs': 64, 'targets': 14}, 'batch_size': 8},
    'optimizer': {'learning_rate': 1.0},
    'loss': {'z_loss': 0.0},
    'train_steps': 40,
    'random_seed': seed,
    'initial_checkpoint_path': None,
    'distillation': None,
  }
  for name, value in changes.items():
    *path, last = name.replace('__', '.').split('.')
    inner = run
    for part in path:
      inner = inner[part]
    inner[last] = value
  return run


def lines_of(records):
  return ''.join(json.dumps(record) + '\n' for record in records)


@pytest.fixture
def write_run(tmp_path):
  """Returns the function that writes a run under `tmp_path` and returns its folder."""

  def write(name, seed=0, losses=(6.0, 3.0, 2.0), experts=None, record=None, parameters=1000, train=None, **changes):
    folder = tmp_path / name
    if experts:
      changes['model__moe'] = {'num_experts': experts, 'router': 'top1'}
    run = settings(folder, seed, **changes)
    task = run['data']['mixture_or_task_name']
    config = {'model': run['model'], 'run': run, 'vocabulary': {'digest': 'v', 'size': 359}, 'parameters': parameters}
    (folder / 'checkpoints' / '40').mkdir(parents=True)
    (folder / 'checkpoints' / '40' / 'config.json').write_text(json.dumps(config | (record or {})))
    (folder / 'train').mkdir()
    (folder / 'eval' / task).mkdir(parents=True)
    layers = {f'{metric}/{layer}': 0.1 for layer in ('encoder_1', 'decoder_1') for metric in (
      'fraction_dropped', 'router_entropy', 'expert_load_max_over_mean')} if experts else {}  # fmt: skip
    layers |= {'fraction_dropped': 0.1} if experts else {}
    speed = {'steps_per_second': 10.0, 'target_tokens_per_second': 1000.0, 'input_wait_fraction': 0.02}
    if train is None:
      train = [
        {'step': step, 'cross_ent_loss': 3.0 - step / 40, 'target_tokens': 100.0, **speed, **layers}
        for step in (1, 10, 20, 30, 40)
      ]
    (folder / 'train' / 'metrics.jsonl').write_text(lines_of(train))
    (folder / 'eval' / task / 'metrics.jsonl').write_text(
      lines_of({'step': 20 * i, 'cross_ent_loss': loss, 'accuracy': 0.5} for i, loss in enumerate(losses))
    )
    if experts:
      loads = [{'step': step, 'encoder_1': [8] * experts, 'decoder_1': list(range(experts))} for step in (1, 40)]
      (folder / 'train' / 'expert_tokens.jsonl').write_text(lines_of(loads))
    return folder

  return write


@pytest.fixture
def read_all(tmp_path):
  """Returns the function that reads all runs under `tmp_path`."""

  def read():
    folders, _ = find_folders([tmp_path])
    return [read_run(folder, name)[0] for folder, name in zip(folders, names_of(folders), strict=True)]

  return read
