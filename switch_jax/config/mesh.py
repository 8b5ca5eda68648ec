"""Where it is computed: the device mesh, and the table of which axis of an array lies on which axis of the mesh."""

import dataclasses
from collections.abc import Mapping

from switch_jax.config.validation import Checked, ConfigError, suggest

MESH_AXES = ('data', 'expert', 'model')
TOKEN_AXES = ('data', 'expert')

MeshAxes = str | tuple[str, ...] | None

LOGICAL_AXES = {
  'batch': 'rows of the batch',
  'length': 'positions in a row',
  'activation_embed': 'the residual width of activations, emb_dim',
  'activation_vocab': 'the width of the logits, the padded vocabulary',
  'embed': 'emb_dim in the parameters outside the experts',
  'mlp': 'the hidden width of a dense feed-forward network, mlp_dim',
  'heads': 'attention heads',
  'joined_kv': 'num_heads * head_dim in the attention kernels',
  'vocab': 'the padded vocabulary in the embedding and the logits kernel',
  'expert': 'experts, num_experts',
  'expert_embed': 'emb_dim in the experts',
  'expert_mlp': 'the hidden width of an expert',
  'layers': 'blocks of a scanned stack',
  'relpos_buckets': 'relative-position buckets',
}

# Expert + model + data parallelism; with a mesh axis of size 1 the other layouts of Figure 9 fall out of it.
DEFAULT_RULES: Mapping[str, MeshAxes] = {
  'batch': TOKEN_AXES,
  'length': None,
  'activation_embed': None,
  'activation_vocab': 'model',
  'embed': None,
  'mlp': 'model',
  'heads': 'model',
  'joined_kv': 'model',
  'vocab': 'model',
  'expert': 'expert',
  'expert_embed': None,
  'expert_mlp': 'model',
  'layers': None,
  'relpos_buckets': None,
}

# Operations that have more than one form, and the forms: the plain one first, then what they suit. Which one a device
# gets is decided in `kernels/table.py`.
KERNELS: Mapping[str, Mapping[str, str]] = {
  'attention': {
    'plain': 'all scores at once, computed again in the backward pass',
    'by_row': 'one row of the batch at a time, for XLA:CPU',
    'fused': "a kernel for TPUs in which scores stay in the core's memory",
  },
  'projections': {
    'apart': 'query, key and value each by its own product',
    'together': 'by one product with their matrices side by side, which reads the tokens once: for XLA:CPU',
  },
  'dense_product': {
    'plain': 'one product, and its derivative as JAX has it',
    'own_gradient': "the same with its kernel's gradient as XLA:CPU's fast product takes it",
  },
  'expert_product': {
    'plain': 'one batched product',
    'own_gradient': "the same with its kernel's gradient as XLA:CPU's fast product takes it",
  },
  'positions': {
    'cumulative': "a cumulative sum over one-hots, as the paper's code",
    'sorted': 'a sort of the choices, whose memory does not grow with the experts',
    'products': 'exact products of one-hots, for TPUs: no sort, no scatter',
  },
  'drop_free': {
    'ragged': 'a ragged product over the runs of the experts',
    'blocks': 'runs padded to blocks of one expert each, one block at a time',
    'grouped': 'the same blocks in a kernel for TPUs, which fetches the matrices of an expert once for all of its own',
  },
  'exchange': {
    'gathered': 'of a ragged dispatch: every shard gets all tokens, by ordinary collectives',
    'ragged': 'only tokens that have a slot move, by the ragged all-to-all of TPUs',
  },
  'update': {
    'plain': 'whole arrays at once',
    'in_place': 'Adafactor one matrix at a time where it lies, for one CPU device',
    'sharded': 'each token shard updates its part of what all of them hold, and keeps that part of the state (ZeRO-1)',
  },
}

# Axes that some array has together, so no two of them can lie on one mesh axis.
_TOGETHER = (
  ('batch', 'length', 'activation_embed'),
  ('batch', 'length', 'activation_vocab'),
  ('layers', 'embed', 'mlp'),
  ('layers', 'embed', 'joined_kv'),
  ('embed', 'vocab'),
  ('heads', 'relpos_buckets'),
  ('layers', 'expert', 'expert_embed', 'expert_mlp'),
)


def as_tuple(axes: MeshAxes) -> tuple[str, ...]:
  """Returns mesh axes as a tuple, empty for None."""
  return (axes,) if isinstance(axes, str) else tuple(axes or ())


def check_rules(rules: Mapping[str, MeshAxes]) -> None:
  """Checks rules by which arrays lie on the mesh, `DEFAULT_RULES` for those that are missing.

  Raises:
    ConfigError: a name is unknown, two axes of one array would lie on one mesh axis, or the rows of the batch or the
      experts would lie where the exchange of tokens does not reach them.
  """
  for name, axes in rules.items():
    if name not in LOGICAL_AXES:
      raise ConfigError(
        f'the layout rules (MeshConfig.rules) name the logical axis {name!r}; known are {", ".join(LOGICAL_AXES)}.'
        f'{suggest(name, LOGICAL_AXES)}'
      )
    for axis in as_tuple(axes):
      if axis not in MESH_AXES:
        raise ConfigError(
          f'the layout rule of {name!r} names the mesh axis {axis!r}; use {", ".join(MESH_AXES)}.'
          f'{suggest(axis, MESH_AXES)}'
        )
    if len(set(as_tuple(axes))) < len(as_tuple(axes)):
      raise ConfigError(f'the layout rule of {name!r} is {axes!r}; name each mesh axis once.')
  table = {**DEFAULT_RULES, **rules}
  for names in _TOGETHER:
    owner: dict[str, str] = {}
    for name in names:
      for axis in as_tuple(table[name]):
        if axis in owner:
          raise ConfigError(
            f'the layout rules put both {owner[axis]!r} and {name!r} on the mesh axis {axis!r}, and there are arrays '
            'with both; one mesh axis can split only one axis of an array. Change one of the two rules.'
          )
        owner[axis] = name
  if as_tuple(table['batch']) != TOKEN_AXES:
    raise ConfigError(
      f"the layout rule of 'batch' is {table['batch']!r}; rows are split over {TOKEN_AXES}, where an axis of size 1 "
      'does nothing: leave this rule out and set the sizes of the axes.'
    )
  if not set(as_tuple(table['expert'])) <= set(TOKEN_AXES):
    raise ConfigError(
      f"the layout rule of 'expert' is {table['expert']!r}; experts exchange tokens over 'data' and 'expert': use "
      "'expert', or ('data', 'expert') for experts that have no replicas."
    )


def check_kernels(kernels: Mapping[str, str]) -> None:
  """Raises a `ConfigError` unless the operations and their forms are in `KERNELS`."""
  for operation, form in kernels.items():
    if operation not in KERNELS:
      raise ConfigError(
        f'MeshConfig.kernels names the operation {operation!r}; known are {", ".join(KERNELS)}.'
        f'{suggest(operation, KERNELS)}'
      )
    if form not in KERNELS[operation]:
      known = '; '.join(f'{name!r}: {what}' for name, what in KERNELS[operation].items())
      raise ConfigError(
        f'MeshConfig.kernels has {operation!r}: {form!r}, which is none of its forms ({known}).'
        f'{suggest(form, KERNELS[operation])}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Checked):
  """The device mesh `(data, expert, model)` and what lies where on it.

  Attributes:
    data, model: devices along the axis; -1 (for one of them) is whatever the others leave.
    expert: devices along the expert axis; None is the largest divisor of the devices that divides `num_experts` and
      whatever else the rules put on it.
    num_slices: TPU slices that are joined by the data-center network; `data` goes across them, the other axes stay
      inside a slice. It is part of `data`: 4 slices with `data=8` have 2 parts of it each.
    rules: mesh axes of logical axes (`LOGICAL_AXES`), as `{'embed': ('data', 'expert')}`; `DEFAULT_RULES` for those
      that are missing. None is "not split".
    kernels: forms of operations (`KERNELS`) in place of those that the devices would get, as
      `{'attention': 'plain'}`. They change no number beyond rounding, and are no part of a run's identity.
  """

  data: int = -1
  expert: int | None = None
  model: int = 1
  num_slices: int = 1
  rules: dict[str, MeshAxes] = dataclasses.field(default_factory=dict)
  kernels: dict[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    super().__post_init__()
    sizes = (self.data, self.expert, self.model)
    for name in ('data', 'expert', 'model'):
      size = getattr(self, name)
      self.require(size is None or size == -1 or size >= 1, name, 'an axis has at least 1 device (-1: what is left).')
    self.require(sizes.count(-1) <= 1, 'data', 'only one axis may be -1 (what is left).')
    self.require_at_least(1, 'num_slices')
    check_rules(self.rules)
    check_kernels(self.kernels)
    if self.num_slices > 1 and 'data' in as_tuple(self.rules.get('expert', DEFAULT_RULES['expert'])):
      raise ConfigError(
        f'MeshConfig.num_slices is {self.num_slices}, and the rules put experts on the data axis, which goes across '
        "slices; tokens would be exchanged over the slow network. Use the rule 'expert': 'expert'."
      )
    rule = f'the {self.num_slices} slices share the data axis; use a multiple of {self.num_slices}, or -1.'
    self.require(self.data == -1 or self.data % self.num_slices == 0, 'data', rule)
