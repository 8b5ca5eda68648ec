"""Checkpoints of our own that training could have saved, and conversions of them by the command line."""

import jax
import numpy as np
import orbax.checkpoint as ocp

from switch_jax import convert
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import CheckpointConfig, ModelConfig, MoeConfig, OptimizerConfig
from switch_jax.model import abstract_parameters, parameter_axes
from switch_jax.parallel import Layout
from switch_jax.training.optimizer import make_optimizer
from switch_jax.training.state import TrainState

SIZES = dict(vocab_size=11, emb_dim=10, num_heads=2, head_dim=3, mlp_dim=7, num_encoder_layers=2, num_decoder_layers=4)
MODELS = {
  'base': ModelConfig(**SIZES, moe=MoeConfig(num_experts=3)),
  'xxl': ModelConfig(
    **SIZES,
    mlp_activations=('gelu', 'linear'),
    logits_via_embedding=False,
    moe=MoeConfig(num_experts=8, eval_capacity_factor=4.0),
  ),
  'c': ModelConfig(
    **SIZES, logits_via_embedding=False, moe=MoeConfig(num_experts=5, encoder_layers=1, decoder_layers=1)
  ),
  'scanned': ModelConfig(**SIZES, scan_layers=True, moe=MoeConfig(num_experts=3)),
  'dense': ModelConfig(**SIZES),
  'square': ModelConfig(**(SIZES | dict(mlp_dim=10)), moe=MoeConfig(num_experts=3)),
}
# With experts in attention too, for which only our own format has names.
ATTENTION = {
  'linear': ModelConfig(**SIZES, moe=MoeConfig(num_experts=3, encoder_attention_layers=2, attention_expert='linear')),
  'mlp': ModelConfig(**SIZES, moe=MoeConfig(num_experts=3, decoder_attention_layers=(1, 3))),
}
# Without an encoder; their logits are tied to the embedding, with a factor that Llama and Mixtral do not have.
_DECODER = SIZES | dict(head_dim=4, num_encoder_layers=0, num_decoder_layers=2, positions='rotary')
_DROP_FREE = dict(train_capacity_factor=None, eval_capacity_factor=None)
DECODERS = {
  'llama': ModelConfig(**_DECODER, mlp_activations=('silu', 'linear')),
  'mixtral': ModelConfig(
    **_DECODER,
    mlp_activations=('silu', 'linear'),
    moe=MoeConfig(num_experts=3, router='topk', decoder_layers=1, expert_mlp_dim=5, **_DROP_FREE),
  ),
}


def save_own(folder, config, *, with_optimizer=True):
  """Saves a checkpoint through Orbax, as training does, every number another one; returns its state."""
  layout = Layout.single_device()
  params = abstract_parameters(config, layout)
  chain = make_optimizer(OptimizerConfig(), params, parameter_axes(config), layout)
  state = TrainState(jax.ShapeDtypeStruct((), np.int32), params, jax.eval_shape(chain.init, params))
  random = np.random.default_rng(1)

  def fill(leaf):
    return np.full(leaf.shape, 9, leaf.dtype) if leaf.dtype == np.int32 else random.normal(size=leaf.shape).astype('f4')

  state = jax.tree.map(fill, state)
  if not with_optimizer:
    state = {'step': state.step, 'params': state.params}
  store = CheckpointStore(folder, CheckpointConfig())
  store.save(9, state, {'model': config.to_json(), 'vocabulary': {'size': 11}, 'identity': {'a': 1}})
  store.close()
  return state


def run(source, target, *more):
  """Converts by the command line; returns the exit status."""
  return convert.main([f'--from={source}', f'--to={target}', *more])


def state_of(folder):
  """Returns everything a checkpoint holds, read by Orbax itself."""
  store = CheckpointStore(folder)
  step = store.latest_step()
  path = store.path(step) / 'state'
  tree = ocp.StandardCheckpointHandler().metadata(path).tree
  arguments = ocp.checkpoint_utils.construct_restore_args(jax.tree.map(lambda x: np.empty((), x.dtype), tree))
  with ocp.PyTreeCheckpointer() as reader:
    return reader.restore(path, restore_args=arguments)


def assert_same(a, b):
  """Two trees have the same arrays under the same names, bit for bit."""
  a, b = ({jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(t)} for t in (a, b))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name, strict=True)


def refused(capsys, tmp_path, source, target, message, *more):
  """A conversion ends in one line and status 1, and leaves nothing on disk."""
  before = sorted(tmp_path.iterdir())
  assert run(source, target, *more) == 1
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
  assert sorted(tmp_path.iterdir()) == before
