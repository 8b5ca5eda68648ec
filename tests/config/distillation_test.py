"""What a student can take from a teacher."""

import pytest

from switch_jax.config import INHERITED_KINDS, ConfigError, DistillationConfig


def test_all_kinds_are_inherited_unless_some_are_named():
  assert DistillationConfig(teacher_path='x').initialize == INHERITED_KINDS
  assert DistillationConfig(teacher_path='x', initialize=['mlp']).initialize == ('mlp',)
  assert DistillationConfig(teacher_path='x', initialize=()).initialize == ()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(teacher_path=''), 'it must name a checkpoint'),
    (dict(soft_weight=-0.1), 'it is a share of the loss, from 0 to 1'),
    (dict(temperature=0.0), 'it must be greater than 0'),
    (dict(initialize=('mlp', 'mlp')), 'name each kind once'),
    (dict(initialize=('experts',)), "must be a tuple of one of 'embedding', 'attention', 'layer_norm', 'mlp'"),
    (dict(teacher_logits=''), 'it must name a folder; None runs the teacher'),
    (dict(top_k=8), 'top_k is 8; it is for teacher_logits, which is None'),
    (dict(top_k=0, teacher_logits='y'), 'it must be at least 1'),
  ],
)
def test_impossible_settings_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    DistillationConfig(**{'teacher_path': 'x', **fields})
