"""What an exported folder has beside the weights, and what of it comes back."""

import json
import pathlib

import pytest

from switch_jax import data, interop
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import CheckpointConfig, ConfigError
from switch_jax.interop import huggingface_files
from switch_jax.tasks import train_vocabulary
from tests.interop.own_checkpoints import DECODERS, MODELS, refused, run, save_own, state_of

RUN = {
  'model_dir': '/secret/place',
  'data': {'mixture_or_task_name': 'my_task', 'batch_size': 16, 'feature_lengths': {'inputs': 32, 'targets': 8}},
  'train_steps': 9,
  'optimizer': {'name': 'adafactor', 'learning_rate': 1.0},
}


def save_run(folder, vocabulary):
  """Saves a MODEL_DIR of a run with a vocabulary, without metrics."""
  save_own(folder / 'parameters', MODELS['base'], with_optimizer=False)
  record = {'model': MODELS['base'].to_json(), 'vocabulary': vocabulary, 'run': RUN}
  store = CheckpointStore(folder, CheckpointConfig())
  store.save(9, state_of(folder / 'parameters'), record | {'features': {'inputs': {'add_eos': True}}})
  store.close()


@pytest.fixture
def trained(tmp_path):
  """A MODEL_DIR of a run on bytes with metrics."""
  folder = tmp_path / 'ours'
  save_run(folder, data.describe_vocabulary(data.make_vocabulary('byt5')))
  for place, lines in (
    ('train', [{'step': 8, 'loss': 3.0}, {'step': 9, 'loss': 2.5, 'steps_per_second': 7.0}, {'step': 12, 'loss': 1.0}]),
    ('eval/my_task', [{'step': 6, 'cross_ent_loss': 2.75, 'accuracy': None}]),
    ('eval/my_task.metrics', [{'step': 9, 'rouge1': 41.5}]),
  ):
    (folder / place).mkdir(parents=True)
    (folder / place / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return folder


def test_a_whole_folder(trained, tmp_path, capsys):
  assert run(f'switch_jax:{trained}', f'huggingface:{tmp_path}/hf', '--license=cc-by-4.0') == 0
  assert '  tokenizer: tokenizer.json, tokenizer_config.json: 259 ids, 0 of them extra' in capsys.readouterr().out
  names = ['README.md', 'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json']
  assert sorted(path.name for path in (tmp_path / 'hf').iterdir()) == [*names, 'tokenizer_config.json']
  card = (tmp_path / 'hf' / 'README.md').read_text()
  assert card.startswith('---\nlicense: cc-by-4.0\nlibrary_name: transformers\n')
  for line in ('Exported by switch_jax .* at step 9', '| num_experts | 3 |', '| task | my_task |', '| loss | 2.5 |',
               '## Held out, my_task (step 6)', '| cross_ent_loss | 2.75 |', '| rouge1 | 41.5 |'):  # fmt: skip
    assert line.split('.*')[0] in card
  assert not any(word in card for word in ('secret', str(tmp_path), 'steps_per_second', '| accuracy'))
  assert run(f'huggingface:{tmp_path}/hf', f'switch_jax:{tmp_path}/again') == 0
  assert interop.own.record(str(tmp_path / 'again'))['vocabulary']['name'] == 'byt5'


def test_pieces_go_along(tmp_path):
  """From ours to ours, to Hugging Face and back, the SentencePiece model is in the folder."""
  ours, model = tmp_path / 'ours', train_vocabulary.train([pathlib.Path(train_vocabulary.__file__).read_text()], 400)
  ours.mkdir()
  (ours / 'vocabulary.model').write_bytes(model)
  vocabulary = data.describe_vocabulary(data.make_vocabulary(str(ours / 'vocabulary.model')))
  save_run(ours, vocabulary | {'name': '/lost'})
  source = f'switch_jax:{ours}'
  for format, name in (
    ('switch_jax', 'vocabulary.model'),
    ('huggingface', 'spiece.model'),
    ('switch_jax', 'vocabulary.model'),
  ):
    target = tmp_path / f'{len(list(tmp_path.iterdir()))}'
    assert run(source, f'{format}:{target}') == 0
    assert (target / name).read_bytes() == model
    source = f'{format}:{target}'
  again = interop.own.record(str(target))['vocabulary']
  assert data.load_vocabulary(again, target).vocab_size == 500


def test_no_licence_is_guessed(trained, tmp_path):
  assert run(f'switch_jax:{trained}', f'huggingface:{tmp_path}/hf') == 0
  card = (tmp_path / 'hf' / 'README.md').read_text()
  assert 'license:' not in card
  assert 'No licence was named' in card


def test_wrong_licences(trained, tmp_path, capsys):
  ours = f'switch_jax:{trained}'
  refused(capsys, tmp_path, ours, f'huggingface:{tmp_path}/out', "--license is 'Apache 2'", '--license=Apache 2')
  refused(capsys, tmp_path, ours, f't5x:{tmp_path}/out', '--license is for huggingface', '--license=mit')
  with pytest.raises(ConfigError, match='small letters'):
    huggingface_files.check_license('a\nb: c')


def test_generation_is_that_of_infer():
  content = huggingface_files.generation_config(262, 259, 8)
  assert (content['max_new_tokens'], content['num_beams'], content['do_sample']) == (8, 1, False)
  assert content['suppress_tokens'] == [0, 259, 260, 261]
  assert not {'max_new_tokens', 'suppress_tokens'} & huggingface_files.generation_config(262, None, None).keys()


@pytest.mark.parametrize('model', DECODERS)
def test_a_model_without_an_encoder(model):
  """A text is the beginning of a row: after the start symbol, and not ended."""
  vocabulary = data.describe_vocabulary(data.make_vocabulary('byt5'))
  record = {'vocabulary': vocabulary, 'run': RUN}
  files, _ = huggingface_files.make_files(DECODERS[model], record, None, None, None)
  card = files['README.md'].decode()
  assert f'- {model}\n' in card
  assert "AutoModelForCausalLM.from_pretrained('.')" in card
  generation = json.loads(files['generation_config.json'])
  assert generation['bos_token_id'] == 0
  assert 'decoder_start_token_id' not in generation
  tokenizer, settings = (json.loads(files[name]) for name in ('tokenizer.json', 'tokenizer_config.json'))
  ids = [next(iter(part.values()))['id'] for part in tokenizer['post_processor']['single']]
  assert ids == ['<pad>', 'A']
  assert (settings['padding_side'], settings['model_max_length']) == ('left', 40)
  assert huggingface_files.row_length(record) == 40
  assert huggingface_files.row_length({'run': [1]}) is None


def test_config_json_that_holds_something_else():
  record = {'run': [1], 'vocabulary': 'x'}
  files, words = huggingface_files.make_files(MODELS['dense'], record, None, None, None)
  assert words == 'none: the checkpoint does not record its vocabulary'
  assert b'# dense T5\n' in files['README.md']
