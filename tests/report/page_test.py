"""The page: one file that asks for nothing, with data that a browser can read."""

import html.parser
import json

import pytest

from switch_jax.report.page import render


class Elements(html.parser.HTMLParser):
  """Collects start tags, and the text of scripts by id."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.scripts, self._script, self.text = [], {}, None, ''
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    self._script = dict(attributes).get('id', 'program') if tag == 'script' else None

  def handle_endtag(self, tag):
    self._script = None if tag == 'script' else self._script

  def handle_data(self, data):
    if self._script:
      self.scripts[self._script] = self.scripts.get(self._script, '') + data
    else:
      self.text += data


@pytest.fixture
def page(read_all):
  """Returns the function that renders all runs under `tmp_path`."""
  return lambda problems=(): Elements(render(read_all(), problems))


def data_of(page):
  def refuse(constant):
    raise AssertionError(f'{constant} is no JSON')

  return json.loads(page.scripts['data'], parse_constant=refuse)['tasks']


def test_nothing_is_fetched(write_run, page):
  write_run('a', experts=4)
  for tag, attributes in page().tags:
    assert 'src' not in attributes
    assert tag not in ('iframe', 'img', 'object', 'embed', 'base')
    if tag == 'link':
      assert attributes['href'].startswith('data:')
  # What the browser does by itself; plotly.js has addresses of maps, which are asked for by maps only.
  assert '@import' not in page().text
  assert 'url(' not in page().text


def test_curves_of_series_by_all_three_axes(write_run, page):
  for seed, loss in enumerate((2.0, 2.5)):
    write_run(f'a_seed{seed}', seed, losses=(6.0, loss))
  [task] = data_of(page())
  assert [(s['label'], s['runs']) for s in task['series']] == [('a', 2)]
  [curve] = task['curves']['held_out']
  assert curve == {
    'steps': [0, 20],
    'tokens': [0, 2000],
    'seconds': [0, 2],
    'mean': [6, 2.25],
    'low': [6, 2],
    'high': [6, 2.5],
    'count': [2, 2],
  }
  assert task['curves']['held_out_text'] == [None]  # no such metric
  assert task['curves']['seconds_per_step'][0]['mean'] == [0.1] * 4
  assert task['routed'] == []


def test_every_plot_of_the_page_has_its_data(write_run, page):
  write_run('a', experts=4)
  found = page()
  [task] = data_of(found)
  attributes = [a for _, a in found.tags]
  curves = {a['data-curve'] for a in attributes if 'data-curve' in a}
  curves |= {a['value'] for tag, a in found.tags if tag == 'option' and a['value'].startswith('held_out')}
  assert {'held_out', 'held_out_text', 'training', 'seconds_per_step', 'input_wait'} <= curves
  assert curves <= set(task['curves'])
  by_layer = {a['data-layers'] for a in attributes if 'data-layers' in a}
  assert 'router_entropy' in by_layer
  assert by_layer <= set(task['routed'][0]['over_time'])
  axes = {a['value'] for tag, a in found.tags if tag == 'button'}
  assert axes == {'steps', 'tokens', 'seconds'}
  assert axes <= set(task['curves']['training'][0])


def test_tasks_are_apart(write_run, page):
  write_run('a')
  write_run('b', data__mixture_or_task_name='other_task')
  found = page()
  assert [len(task['series']) for task in data_of(found)] == [1, 1]
  assert [a['href'] for tag, a in found.tags if tag == 'a' and a['href'].startswith('#')] == ['#task-0', '#task-1']


def test_tables_say_what_the_runs_came_to(write_run, page):
  for seed, loss in enumerate((2.0, 2.1, 2.2)):
    write_run(f'switch_seed{seed}', seed, losses=(6.0, loss), experts=4, parameters=12345)
  write_run('dense', losses=(6.0, 2.5))
  text = ' '.join(page().text.split())
  assert '2.100 ± 0.100' in text
  assert '12,345' in text
  assert '10.0 ± 0.0 %' in text  # dropped
  assert '100.0 ± 0.0 ms' in text
  assert 'model.moe.num_experts' in text


def test_names_and_pieces_are_text_and_never_markup(write_run, page):
  folder = write_run('<script>alert(1)</script>', experts=2)
  layer = {
    'expert_tokens': [3, 0], 'token_bits': 0.0, 'token_bits_by_chance': 0.0,
    'favourites': [[{'token': 5, 'piece': '</script><b>', 'count': 3, 'of': 4, 'bits': 1.0}], []],
  }  # fmt: skip
  experts = {'step': 40, 'split': 'x', 'batches': 1, 'router': 'top1', 'groups': [], 'layers': {'encoder_1': layer}}
  (folder / 'eval' / 'some_task' / 'experts_40.json').write_text(json.dumps(experts))
  found = page(problems=['<i>torn</i>'])
  assert not [tag for tag, _ in found.tags if tag == 'i' and 'class' not in _]
  assert sum(tag == 'script' for tag, _ in found.tags) == 3
  [task] = data_of(found)
  assert task['series'][0]['label'] == 'script>'  # the end of the path, as for any folder
  assert task['routed'][0]['experts']['layers']['encoder_1']['favourites'][0] == [['</script><b>', 3, 4]]
  assert '<i>torn</i>' in found.text


def test_a_page_of_a_run_that_has_just_begun(write_run, page):
  write_run('a', losses=(), train=[{'step': 1, 'cross_ent_loss': None, 'target_tokens': 5}])
  [task] = data_of(page())
  assert task['curves']['held_out'] == task['curves']['training'] == [None]


def test_the_title_says_what_is_shown(write_run, page):
  write_run('a')
  assert '\na: some_task\n' in page().text
  for seed in range(2):
    write_run(f'b_seed{seed}', seed)
  assert '\nsome_task: 3 runs\n' in page().text
