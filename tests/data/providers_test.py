"""What identifies the data of a task, and what is said where it is other data."""

import dataclasses
import pathlib
import sys

import pytest
from etils import epath

from switch_jax import data
from switch_jax.config import ConfigError
from switch_jax.data import providers

ROOT = pathlib.Path(__file__).resolve().parents[2]


def fingerprint(config, seed=0):
  """Returns the fingerprint of a configuration, without opening the data."""
  module = providers.import_task_module(config)
  return providers.fingerprint(config, seed, module, providers.find_provider(config, 'train'))


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'batch_size': 16}, 'batch_size was 8 and is 16'),
    ({'feature_lengths': {'inputs': 60, 'targets': 15}}, 'inputs_length was 64 and is 60'),
    ({'num_data_shards': 2}, 'num_data_shards was 1 and is 2'),
    ({'shuffle_buffer_size': 51}, 'shuffle_buffer_size was 50 and is 51'),
    ({'shuffle': False}, 'shuffle_buffer_size was 50 and is 0'),
    ({'pack': False}, 'pack was 1 and is 0'),
  ],
)
def test_other_data_is_refused_by_name(config, changes, expected):
  changed = fingerprint(dataclasses.replace(config, **changes))
  with pytest.raises(ConfigError, match=f'made on other data; {expected}: set it back. A MODEL_DIR belongs to'):
    providers.check_fingerprint(fingerprint(config), changed)


def test_the_same_text_elsewhere_is_the_same_corpus(config, tmp_path, text_pattern):
  text = epath.Path(text_pattern).read_text()
  copied = dataclasses.replace(config, text_files=str(tmp_path / 'words.txt'))
  (tmp_path / 'words.txt').write_text(text)
  providers.check_fingerprint(fingerprint(config), fingerprint(copied))
  (tmp_path / 'words.txt').write_text(text.replace('one', 'uno', 1))
  with pytest.raises(ConfigError, match=r"other data; corpus was '\w{16}' and is '\w{16}': restore the text"):
    providers.check_fingerprint(fingerprint(config), fingerprint(copied))


def test_what_a_task_says_of_its_text(config, add_copy_task):
  module = providers.import_task_module(config)
  assert providers.describe_text(config, module).startswith('56,322 bytes of text in 1 file(s); held out are ')
  assert providers.describe_text(add_copy_task('silent', [['abc']]), None) is None


def test_all_differences_are_named():
  digests = 'a' * 64, 'b' * 64
  with pytest.raises(ConfigError) as error:
    providers.check_fingerprint({'corpus': digests[0], 'seqio': '1', 'old': 3}, {'corpus': digests[1], 'seqio': '2'})
  assert "corpus was 'aaaaaaaaaaaaaaaa' and is 'bbbbbbbbbbbbbbbb': restore the text" in str(error.value)
  assert "seqio was '1' and is '2': install that version of seqio" in str(error.value)
  assert 'old was 3 and is None: set it back' in str(error.value)


def test_tasks_an_encoder_decoder_cannot_use_are_refused(add_copy_task):
  config = add_copy_task('copied', [['abc']])
  with pytest.raises(ConfigError, match='copied has a vocabulary of its own; leave VOCABULARY at None'):
    providers.find_provider(dataclasses.replace(config, vocabulary='other.model'), 'train')
  assert providers.find_provider(config, 'train').name == 'copied'
  with pytest.raises(ConfigError, match=r'DataConfig.languages is .* the tasks of None have no languages'):
    providers.import_task_module(dataclasses.replace(config, languages=('de',)))


def test_features_are_those_whose_lengths_are_given(config, add_copy_task):
  targets = dataclasses.replace(config, mixture_or_task_name='text_files_lm')
  providers.import_task_module(targets)
  message = (
    r"text_files_lm has the features \['targets'\]; an encoder-decoder needs inputs and targets; use another task, or "
    r"a decoder-only model with TASK_FEATURE_LENGTHS=\{'targets': 512\}."
  )
  with pytest.raises(ConfigError, match=message):
    providers.find_provider(targets, 'train')
  targets = dataclasses.replace(targets, feature_lengths={'targets': 32})
  found = providers.fingerprint(targets, 0, None, providers.find_provider(targets, 'train'), decoder_only=True)
  assert (found['targets_length'], found['decoder_only'], found['loss_on_targets_only']) == (32, 1, 1)
  assert not found.keys() & {'inputs_length', 'inputs_features'}
  with pytest.raises(
    ConfigError, match=r"feature_lengths is \{'targets': 9\}, and both has inputs too; give both lengths"
  ):
    providers.find_provider(
      dataclasses.replace(add_copy_task('both', [['abc']]), feature_lengths={'targets': 9}), 'train'
    )


def test_the_vocabulary_is_known_without_opening(config):
  assert data.vocabulary_of(config).vocab_size == 359


@pytest.fixture
def own_tasks(tmp_path, monkeypatch):
  """A folder `tasks` of the user, which comes first on the Python path."""

  def forget():
    for name in [name for name in sys.modules if name.partition('.')[0] == 'tasks']:
      del sys.modules[name]

  folder = tmp_path / 'tasks'
  folder.mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  # An older version that is installed in its place would answer for `tasks`.
  others = [finder for finder in sys.meta_path if 'Editable' not in getattr(finder, '__name__', '')]
  monkeypatch.setattr(sys, 'meta_path', others)
  forget()
  yield folder
  forget()


def test_a_folder_called_tasks_hides_nothing(config, own_tasks):
  for name in ('__init__', 'my_task', 'answers'):
    (own_tasks / f'{name}.py').write_text('is_mine = True\n')
  for name in ('tasks.my_task', 'tasks.answers'):
    assert providers.import_task_module(dataclasses.replace(config, task_module=name)).is_mine
  for name in ('switch_jax.tasks.answers', 'switch_jax.tasks.languages', 'tasks.languages'):
    module = providers.import_task_module(dataclasses.replace(config, task_module=name))
    assert module.__name__ == f'switch_jax.{name.removeprefix("switch_jax.")}'
    assert pathlib.Path(module.__file__).parent == ROOT / 'tasks'


@pytest.mark.parametrize('beside', [False, True])
def test_the_short_name_of_our_tasks(config, own_tasks, monkeypatch, beside):
  """It is in the gin files of old runs: where there is no such module, and where the directory is our own."""
  own_tasks.rmdir()
  monkeypatch.setattr(sys, 'path', [str(ROOT)] * beside + [path for path in sys.path if path not in ('', str(ROOT))])
  module = providers.import_task_module(dataclasses.replace(config, task_module='tasks.languages'))
  assert module.__name__ == 'switch_jax.tasks.languages'


def test_an_error_in_the_own_package_is_its_own(config, own_tasks):
  (own_tasks / '__init__.py').write_text('import no_such_library\n')
  with pytest.raises(ConfigError, match=r'task_module is .tasks.answers., .*no_such_library'):
    providers.import_task_module(dataclasses.replace(config, task_module='tasks.answers'))
