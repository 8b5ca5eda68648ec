"""Teachers that have learnt nothing: new parameters, saved as a run saves them."""

import dataclasses

import jax
import numpy as np

from switch_jax import config
from switch_jax.checkpoints import CheckpointStore
from switch_jax.parallel import Layout
from switch_jax.training.state import init_state, plan_state

DATA = config.DataConfig(mixture_or_task_name='random', feature_lengths={'inputs': 12, 'targets': 6}, batch_size=8)


def save(folder, model, **record):
  """Writes new parameters of a model as the checkpoint of step 7, and returns the folder as text."""
  layout = Layout.single_device()
  run = config.RunConfig(model_dir='unused', model=model, data=DATA, train_steps=3, random_seed=5)
  plan = plan_state(run, layout)
  store = CheckpointStore(folder, config.CheckpointConfig())
  state = dataclasses.replace(init_state(run, layout, plan), step=jax.device_put(np.int32(7), layout.replicated()))
  store.save(7, state, {'model': model.to_json(), 'identity': run.identity(), **record}, lambda _: None)
  store.close()
  return str(folder)
