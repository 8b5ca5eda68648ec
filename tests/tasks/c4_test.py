"""C4: all objectives on documents of our own."""

from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.tasks import c4


def test_c4_makes_full_rows(paper_tasks, monkeypatch):
  text = ' '.join(f'word{i}' for i in range(400))
  monkeypatch.setattr(
    c4._SOURCE, 'get_dataset', lambda *args, **kwargs: tf.data.Dataset.from_tensors({'text': text}).repeat(3)
  )
  lengths = {'inputs': 128, 'targets': 29}
  task = seqio.get_mixture_or_task(c4.SPAN_CORRUPTION)
  examples = list(
    task.get_dataset(lengths, split='train', shuffle=False, seed=0, try_in_mem_cache=False).as_numpy_iterator()
  )
  assert {len(e['inputs']) for e in examples[:-1]} == {128}
  assert {len(e['targets']) for e in examples[:-1]} == {29}
  lengths = {'inputs': 64, 'targets': 64}
  task = seqio.get_mixture_or_task(c4.PREFIX_LM)
  examples = list(
    task.get_dataset(lengths, split='train', shuffle=False, seed=0, try_in_mem_cache=False).as_numpy_iterator()
  )
  vocabulary = task.output_features['targets'].vocabulary
  # Nothing is lost: prefixes and rests without their EOS are the three documents.
  joined = ''.join(vocabulary.decode([*e['inputs'][:-1].tolist(), *e['targets'][:-1].tolist()]) for e in examples)
  assert joined == text * 3
  assert len({len(e['inputs']) for e in examples}) > 20
  task = seqio.get_mixture_or_task(c4.LM)
  rows = task.get_dataset({'targets': 64}, split='train', shuffle=False, seed=0, try_in_mem_cache=False)
  examples = [e['targets'].tolist() for e in rows.as_numpy_iterator()]
  assert {len(targets) for targets in examples[:-1]} == {64}
  tokens = [token for targets in examples for token in targets]
  assert tokens.count(vocabulary.eos_id) == 3
  assert vocabulary.decode([t for t in tokens if t != vocabulary.eos_id]) == text * 3
