"""20 training steps beside T5X with flaxformer and beside transformers, from the same weights on the same batches.

What they did is recorded by `record_t5x.py` and `record_huggingface.py` of tests/fixtures.
"""

import json
import pathlib

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from switch_jax import config, interop
from switch_jax.interop.stored import nest
from switch_jax.parallel import Layout
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures'
# As switch_base.gin of flaxformer, shrunk. T5X averages the router losses over the layers that have them, here two.
SWITCH_BASE = dict(
  vocab_size=64, emb_dim=32, num_heads=2, head_dim=8, mlp_dim=48, num_encoder_layers=2, num_decoder_layers=2,
  dropout_rate=0.0,
  moe=config.MoeConfig(
    num_experts=4, sequences_per_group=2, capacity_rounding='round', min_expert_capacity=4, padding_takes_slots=True,
    exploration='argmax', expert_dropout_rate=0.0, aux_loss_factor=0.01 / 2, router_z_loss_factor=0.001 / 2,
  ),
)  # fmt: skip
GEGLU = dict(mlp_activations=('gelu', 'linear'), logits_via_embedding=False)


def recorded(file):
  with np.load(FIXTURES / file) as saved:
    return dict(saved)


def part(content, prefix):
  return {name.removeprefix(prefix): array for name, array in content.items() if name.startswith(prefix)}


def flat(tree):
  return {'/'.join(key.key for key in path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def train(model, params, batches, optimizer, z_loss=0.0):
  """Returns the losses, the lengths of all gradients together, the optimizer's state after one step, the last parameters."""
  rows, length = batches[0]['encoder_input_tokens'].shape
  data = config.DataConfig(
    mixture_or_task_name='x', feature_lengths={'inputs': length, 'targets': length}, batch_size=rows
  )
  run = config.RunConfig(
    model_dir='unused', model=model, data=data, train_steps=len(batches), random_seed=0,
    optimizer=config.OptimizerConfig(**optimizer), loss=config.LossConfig(z_loss=z_loss),
  )  # fmt: skip
  layout = Layout.single_device()
  plan = plan_state(run, layout)
  state = init_state(run, layout, plan, jax.tree.map(lambda x: jax.numpy.asarray(x, 'float32'), params))
  step, losses, lengths, first = make_train_step(run, layout, plan), [], [], None
  for batch in batches:
    state, metrics = step(state, {name: x.astype(np.int32) for name, x in batch.items()})
    first = first or jax.device_get(state.opt_state)
    losses.append(float(metrics['loss']))
    lengths.append(float(metrics['grad_norm']))
  return np.array(losses), np.array(lengths), first, flat(state.params)


def largest_deviation(ours, theirs, unit):
  """Returns the largest difference of two sets of tensors, each tensor measured by the largest value of its `unit`."""
  assert ours.keys() == theirs.keys()
  return max(np.abs(ours[name] - theirs[name]).max() / np.abs(unit[name]).max() for name in theirs)


def compare(case, tolerances, **figures):
  """Every figure is below its tolerance; shows all of them where one is not."""
  assert all(figures[name] < tolerances[name] for name in tolerances), (case, figures)


@pytest.mark.parametrize(
  ('case', 'model', 'tolerances'),
  [
    ('plain', {}, dict(loss=1, norm=1, end=1)),
    ('packed', {}, dict(loss=1, norm=1, end=1)),
    ('geglu_untied', GEGLU, dict(loss=1, norm=1, end=1)),
    ('bfloat16', dict(activation_dtype='bfloat16'), dict(loss=1, norm=1, end=1)),
  ],
)
def test_t5x_and_flaxformer(case, model, tolerances):
  content = recorded(f't5x_steps_{case}.npz')
  features = {name: x for name, x in part(content, 'batch/').items() if 'positions' not in name}
  features.setdefault('encoder_segment_ids', features['encoder_input_tokens'] > 0)
  features.setdefault('decoder_segment_ids', features['decoder_target_tokens'] > 0)
  batches = [{name: x[step] for name, x in features.items()} for step in range(20)]
  start, end = part(content, 'start/'), part(content, 'end/')
  model = config.ModelConfig(**SWITCH_BASE | model)
  losses, lengths, first, params = train(model, nest(start), batches, {}, z_loss=1e-4)
  norms = dict(zip(sorted(end), content['gradient_norms'].T, strict=True))
  # Adafactor's second moments are the squares of the first gradient after one step.
  squares = {name: x for name, x in flat_moments(first).items()}
  ours = {name: np.sqrt(np.mean(squares[name], dtype=np.float64) * end[name].size) for name in end}
  compare(
    case,
    tolerances,
    loss=np.abs(losses - content['losses']).max(),
    first_norms=max(abs(ours[name] / norms[name][0] - 1) for name in end),
    norm=np.abs(lengths / np.linalg.norm(content['gradient_norms'], axis=1) - 1).max(),
    end=largest_deviation(params, end, {name: end[name] - start[name] for name in end}),
  )


def flat_moments(opt_state):
  """Returns `v`, or `v_row` where it is factored, by parameter."""
  moments = {}
  for path, x in jax.tree_util.tree_leaves_with_path(opt_state):
    *name, slot = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)] or ['']
    if slot in ('v', 'v_row'):
      moments['/'.join(name)] = x
  return moments


@pytest.mark.parametrize(
  ('case', 'tolerances'),
  [('plain', dict(loss=1, gradient=1, end=1)), ('drops', dict(loss=1, gradient=1, end=1))],
)
def test_transformers(tmp_path, case, tolerances):
  content = recorded(f'hf_steps_{case}.npz')

  def ours(prefix):
    """Returns the model, and the tensors under this prefix under our names."""
    tensors = {name: np.ascontiguousarray(x) for name, x in part(content, prefix).items()}
    (tmp_path / 'config.json').write_text(str(content['config']))
    save_file(tensors, tmp_path / 'model.safetensors')
    return interop.load('huggingface', tmp_path)

  model, start = ours('start/')
  assert model.moe.expert_capacity == json.loads(str(content['config']))['expert_capacity']
  inputs, targets = content['inputs'], content['targets']
  batches = [
    {
      'encoder_input_tokens': rows,
      'encoder_segment_ids': rows > 0,
      'decoder_input_tokens': np.pad(labels, ((0, 0), (1, 0)))[:, :-1],
      'decoder_target_tokens': labels,
      'decoder_segment_ids': np.ones_like(labels),
      'decoder_loss_weights': labels > 0,
    }
    for rows, labels in zip(inputs, targets, strict=True)
  ]
  optimizer = dict(name='adamw', learning_rate=1e-2, schedule='constant', warmup_steps=0, epsilon=1e-3)
  losses, _, first, params = train(model, start, batches, optimizer)
  start, end, gradients = flat(start), flat(ours('end/')[1]), flat(ours('gradient/')[1])
  mean = {name: x / 0.1 for name, x in flat(optax.tree.get(first, 'mu')).items()}  # after one step (1 - beta1) gradient
  compare(
    case,
    tolerances,
    loss=np.abs(losses - content['losses']).max(),
    gradient=largest_deviation(mean, gradients, gradients),
    end=largest_deviation(params, end, {name: end[name] - start[name] for name in end}),
  )
