"""What a dense student takes of its teacher, by name, shape and kind."""

import dataclasses

import pytest

from switch_jax.config import INHERITED_KINDS, ConfigError
from switch_jax.interop import Inheritance, find_inheritance
from switch_jax.interop.inheritance import kind_of
from tests.interop.own_checkpoints import ATTENTION, MODELS, save_own


@pytest.fixture(scope='module', params=[False, True], ids=['separate', 'scanned'])
def teacher(tmp_path_factory, request):
  folder = tmp_path_factory.mktemp('teacher')
  save_own(folder, dataclasses.replace(ATTENTION['linear'], scan_layers=request.param), with_optimizer=False)
  return str(folder)


def test_a_teacher_with_experts_in_attention(teacher):
  """Its students take all but what has experts there, feed-forward network or attention."""
  found = find_inheritance(teacher, INHERITED_KINDS, MODELS['dense'])
  experts = {f'{stack}/layers_{i}/mlp/{kernel}/kernel' for stack, i in (('encoder', 1), ('decoder', 1), ('decoder', 3))
             for kernel in ('wi', 'wo')}  # fmt: skip
  experts |= {f'encoder/layers_1/attention/{kernel}/kernel' for kernel in ('query', 'key', 'value')}
  assert found.new == dict.fromkeys(experts, 'the teacher has experts there')
  assert 'encoder/layers_1/attention/out/kernel' in found.taken


def test_a_student_with_experts_in_attention(teacher):
  found = find_inheritance(teacher, ('attention',), ATTENTION['linear'])
  assert (
    found.new['encoder/layers_1/attention/query_key_value/expert/query/kernel']
    == "experts and routers are the student's own"
  )
  assert found.new['decoder/decoder_norm/scale'] == 'not asked for'
  assert all('attention' in name or 'rel_embedding' in name for name in found.taken)


def test_nothing_to_take(teacher):
  with pytest.raises(ConfigError, match=r"initialize is .'mlp',., and .* has nothing to initialise the student with"):
    find_inheritance(teacher, ('mlp',), dataclasses.replace(MODELS['dense'], mlp_dim=8))


@pytest.mark.parametrize(
  ('name', 'kind'),
  [
    ('token_embedder/embedding', 'embedding'),
    ('decoder/logits_dense/kernel', 'embedding'),
    ('encoder/layers_0/pre_mlp_layer_norm/scale', 'layer_norm'),
    ('encoder/layers_0/mlp/wi_0/kernel', 'mlp'),
    ('encoder/relpos_bias/rel_embedding', 'attention'),
    ('decoder/layers_0/self_attention/query/kernel', 'attention'),
    ('decoder/layers_1/self_attention/query_key_value/expert/query/kernel', None),
    ('decoder/layers_1/mlp/router/router_weights/w/kernel', None),
  ],
)
def test_kinds(name, kind):
  assert kind_of(name) == kind


def test_in_a_few_lines():
  taken = ('encoder/layers_0/mlp/wi/kernel', 'encoder/layers_1/mlp/wi/kernel', 'encoder/layers_0/mlp/wo/kernel')
  lines = Inheritance(taken, {'encoder/encoder_norm/scale': 'not asked for'}).describe()
  assert lines == [
    'from the teacher:',
    '  mlp: encoder/layers_{0,1}/mlp/wi/kernel, encoder/layers_0/mlp/wo/kernel',
    'new:',
    '  encoder/encoder_norm/scale (not asked for)',
  ]
  assert Inheritance((), {}).describe() == ['from the teacher: nothing']
