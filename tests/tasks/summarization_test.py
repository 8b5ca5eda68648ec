"""Summaries: the fields of both data sets, and Rouge."""

import pytest

from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.tasks import formats, summarization
from tests.tasks.paper_examples import check_task, made


@pytest.mark.parametrize('name', summarization.SUMMARIES)
def test_tasks_on_mock_data(name, mock_data):
  check_task(name)
  task = seqio.TaskRegistry.get(name)
  assert list(task.splits) == ['train', 'validation', 'test']
  [metric] = task.metric_fns
  assert metric(['a b c d'], ['a b x y'])['rouge1'] == pytest.approx(50)


def test_the_fields_of_text_and_summary():
  for name, fields in (('cnn_dailymail_v002', ('article', 'highlights')), ('xsum_v110', ('document', 'summary'))):
    make = formats.summary(*summarization.SUMMARIES[name][1:])
    assert made(make, **dict(zip(fields, ('Long.', 'Short'), strict=True))) == ('summarize: Long.', 'Short')
