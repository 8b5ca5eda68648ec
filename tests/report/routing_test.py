"""What routers did over time: shares of experts, thinned out, and what experts take, layer by layer."""

from switch_jax.report.routing import layers_of, load_maps, over_time, what_experts_take


def test_loads_over_time_are_shares_by_expert():
  lines = [{'step': s, 'encoder_1': [1, 3], 'decoder_0_attention': [2, 2], 'decoder_1': [0, 4]} for s in (1, 9)]
  torn_apart = {'step': 5, 'encoder_1': [1, 2, 3]}  # a line that does not fit the others
  maps = load_maps([lines[0], torn_apart, lines[1]])
  assert maps['steps'] == [1, 9]
  assert list(maps['layers']) == ['encoder_1', 'decoder_0_attention', 'decoder_1']
  assert maps['layers']['encoder_1'] == [[0.5, 0.5], [1.5, 1.5]]
  assert maps['layers']['decoder_1'] == [[0, 0], [2, 2]]


def test_loads_are_thinned_out_to_what_a_page_can_show():
  lines = [{'step': step, 'encoder_1': [1] * 2048} for step in range(500)]
  maps = load_maps(lines)
  cells = sum(len(row) for row in maps['layers']['encoder_1'])
  assert cells <= 60_000
  assert (maps['steps'][0], maps['steps'][-1]) == (0, 499)
  assert load_maps([]) == {'steps': [], 'layers': {}}


def test_routing_over_time_by_layer_encoder_first(write_run, read_all):
  write_run('a', experts=4)
  [run] = read_all()
  found = over_time(run)
  assert list(found['router_entropy']) == ['encoder_1', 'decoder_1']
  assert found['fraction_dropped']['encoder_1'] == [0.1] * 5


def test_layers_are_in_the_order_of_the_model(write_run, read_all):
  layers = ['encoder_2', 'encoder_10', 'decoder_1_attention', 'decoder_1_mlp', 'decoder_11']
  lines = [{'step': 1}, {'step': 2, 'fraction_dropped': 0.2, **{f'fraction_dropped/{name}': 0.1 for name in layers}}]
  write_run('a', train=lines)
  [run] = read_all()
  assert layers_of(run) == layers


def test_a_dense_run_has_no_layers_with_a_router(write_run, read_all):
  write_run('a')
  [run] = read_all()
  assert over_time(run)['router_entropy'] == {}


def test_what_experts_take_is_cut_to_the_first_tokens():
  token = lambda i: {'token': i, 'piece': f'p{i}', 'count': 20 - i, 'of': 20, 'bits': 0.5}  # noqa: E731
  experts = {
    'step': 40, 'split': 'validation', 'batches': 2, 'router': 'top1', 'groups': ['de'], 'vocabulary': 'not shown',
    'layers': {
      'decoder_1': {'token_bits': 0.25, 'favourites': [[], [token(0)]]},
      'encoder_1': {'token_bits': 0.5, 'favourites': [[token(i) for i in range(15)], []]},
    },
  }  # fmt: skip
  found = what_experts_take(experts)
  assert list(found) == ['step', 'split', 'batches', 'router', 'groups', 'layers']
  assert (found['step'], found['groups']) == (40, ['de'])
  assert list(found['layers']) == ['encoder_1', 'decoder_1']
  assert found['layers']['encoder_1'] == {
    'token_bits': 0.5,
    'favourites': [[[f'p{i}', 20 - i, 20] for i in range(12)], []],
  }
  assert found['layers']['decoder_1']['favourites'] == [[], [['p0', 20, 20]]]
  assert len(experts['layers']['encoder_1']['favourites'][0]) == 15  # what was given stays as it is
  assert what_experts_take(None) is None
