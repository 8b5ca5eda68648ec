"""From a CSV file to a model, its accuracy and its predictions, through the command line."""

import json

import numpy as np
import pytest

from switch_jax import main
from switch_jax.folders.metric_lines import read_metrics

TABLE = ['--gin.TASK_FILES=texts.csv', '--gin.TEMPLATE=say: {text}', '--gin.LABELS=("no", "yes")', '--gin.BATCH_SIZE=8']
METRICS = ['--gin.METRICS=("accuracy", "f1", "own_metrics:rows")']
SHRUNK = [
  *('--gin_file=gin/examples/my_task.gin', '--gin.MODEL_DIR=run', '--gin.TRAIN_STEPS=2', '--gin.CHECKPOINT_PERIOD=2'),
  *('--gin.EVAL_PERIOD=2', '--gin.config.ModelConfig.emb_dim=16', '--gin.config.ModelConfig.mlp_dim=32', *TABLE),
  *('--gin.config.ModelConfig.num_encoder_layers=1', '--gin.config.ModelConfig.num_decoder_layers=1'),
  '--gin.config.ModelConfig.moe=None',  # compiles sooner
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 8}",
]
EVALUATION = [
  *('--run_mode=eval', '--gin_file=gin/runs/eval.gin', '--gin_file=gin/runs/labelled.gin', '--gin.MODEL_DIR=run'),
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 8}",
]
PREDICTION = ['--run_mode=infer', '--gin_file=gin/runs/infer.gin', '--gin.MODEL_DIR=run', '--gin.BATCH_SIZE=8']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with a table, and a run that was fine-tuned on it."""
  folder = tmp_path_factory.mktemp('tables')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    rows = [f'{"hello" if i % 2 else "never"} number {i},{i % 2}' for i in range(60)]
    (folder / 'texts.csv').write_text('\n'.join(['text,label', *rows]) + '\n')
    (folder / 'own_metrics.py').write_text('def rows(targets, predictions):\n  return {"own_rows": len(predictions)}\n')
    patch.syspath_prepend(folder)
    assert main.main([*SHRUNK, '--gin.TASK_METRICS=True', *METRICS]) == 0
  return folder


def test_training_records_what_makes_inputs_and_how_many_targets_are_right(folder):
  record = json.loads((folder / 'run' / 'checkpoints' / '2' / 'config.json').read_text())
  assert record['template'] == 'say: {text}'
  held_out = read_metrics(folder / 'run' / 'eval' / 'my_task' / 'metrics.jsonl')
  assert [line['step'] for line in held_out] == [0, 2]
  assert all(0 <= line['example_accuracy'] <= 1 for line in held_out)


def test_the_accuracy_is_that_of_greedy_decoding(folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  assert main.main([*EVALUATION, *TABLE]) == 0
  shown = capsys.readouterr().out
  assert "inputs 'say: {text}', targets 'label' (guessed: TARGET_COLUMN=label), 2 labels (no 30, yes 30)" in shown
  measured = read_metrics(folder / 'run' / 'eval' / 'my_task.metrics' / 'metrics.jsonl')[-1]
  trained = read_metrics(folder / 'run' / 'eval' / 'my_task' / 'metrics.jsonl')[-1]
  np.testing.assert_allclose(measured['accuracy'], 100 * trained['example_accuracy'])
  # What decoding while it trained gave.
  np.testing.assert_allclose(
    [trained[f'task_{n}'] for n in ('accuracy', 'f1')], [measured[n] for n in ('accuracy', 'f1')]
  )
  assert trained['task_own_rows'] == 5


def test_rows_of_a_table_are_predicted(folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  (folder / 'new.csv').write_text('id,text\n5,hello number 7\n6,never\n')
  assert main.main([*PREDICTION, '--gin.INPUT_FILE=new.csv', '--gin.OUTPUT_FILE=a.jsonl']) == 0
  (folder / 'new.jsonl').write_text('"say: hello number 7"\n{"text": "never", "id": 6}\n')
  assert main.main([*PREDICTION, '--gin.INPUT_FILE=new.jsonl', '--gin.OUTPUT_FILE=b.jsonl']) == 0
  ours, same = (
    [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in ('a.jsonl', 'b.jsonl')
  )
  assert [record['id'] for record in ours] == ['5', '6']
  assert [record['prediction'] for record in ours] == [record['prediction'] for record in same]
  np.testing.assert_allclose([r['score'] for r in ours], [r['score'] for r in same], rtol=1e-5)
  capsys.readouterr()
  (folder / 'other.csv').write_text('a,b\n1,2\n')
  assert main.main([*PREDICTION, '--gin.INPUT_FILE=other.csv', '--gin.OUTPUT_FILE=c.jsonl']) == 1
  assert "other.csv has no 'inputs' and no 'text' (the inputs are 'say: {text}') among" in capsys.readouterr().err


def test_a_dry_run_reads_the_table(folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  assert main.main([*SHRUNK, '--dry_run']) == 0
  assert "text        my_task: 60 rows of 1 file(s), inputs 'say: {text}'" in capsys.readouterr().out
  assert main.main([*SHRUNK, '--dry_run', '--gin.TARGET_COLUMN=lable']) == 1
  assert "TARGET_COLUMN asks for the column 'lable'" in capsys.readouterr().err
  assert main.main([*SHRUNK, '--dry_run', '--gin.INITIAL_CHECKPOINT_PATH=none']) == 1
  assert "initial_checkpoint_path is 'none', and there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
  ('text', 'more', 'said'),
  [
    ('text,class\na,1\n', ['--gin.TARGET_COLUMN=label'], "asks for the column 'label', which texts.csv does not have"),
    ('text,label\na,0\nb,2\n', [], "texts.csv:3 has the label '2' in the column 'label'; the labels are no, yes"),
    ('text,label\na,0\n,1\n', [], "texts.csv:3 has nothing (an empty cell or NaN) in the column 'text'"),
    ('text,label\na,0\n', ['--gin.TEMPLATE=say: {txt}'], "TEMPLATE asks for the column 'txt'"),
    ('text,label\na,0\nb,1\n', ['--gin.METRICS=("acuracy",)'], "Did you mean 'accuracy'?"),
  ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, capsys, text, more, said):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'texts.csv').write_text(text)
  assert main.main([*SHRUNK, *more]) == 1
  error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
  assert len(error) == 1
  assert said in error[0]
