"""The studies of the paper's claims: what each one says, and the number of the paper."""

import functools

from studies.claims import (
  Claim,
  Study,
  by_language,
  fewer_steps,
  gain,
  kept,
  language_gain,
  language_speed_up,
  lower,
  more_right,
  predicts,
)
from studies.records import DROPPED

# A difference smaller than this is none: a third of what the paper calls a large one (0.03 nats).
_SAME = (-0.01, 0.01)
_SHORT = ('base.gin', 'short.gin')
_TUNE = ('base.gin', 'tune.gin')


def _fewer_for_the_lowest(point: str) -> tuple[Claim, ...]:
  """Returns what the headline says of a model with experts, of each crossing."""
  experts = point.replace('experts_', '') + ' experts'
  claim = functools.partial(fewer_steps, point, 'dense', paper='7 times', lowest=True, effect=1.0)
  return (
    claim(text=f"{experts}: at least 7 times fewer steps for the dense model's lowest loss", above=7.0),
    claim(text='... more than as many'),
    claim(text='... more than as many, from where on it stays as low', crossing='last'),
  )


STUDIES = {
  'learning_rates': Study(
    title='the learning rate of each model, chosen where no number is reported',
    minutes=31,
    files=('base.gin', 'choose.gin'),
    claims=(),
  ),
  'experts': Study(
    title='experts at equal FLOPs (Figures 1 and 4, Appendix D)',
    minutes=25,
    equal_flops=('dense', *(f'experts_{n}' for n in (1, 2, 4, 8, 16, 32, 64))),
    claims=(
      gain('experts_64', 'dense', '64 experts beat the dense model', '0.2'),
      gain('experts_2', 'experts_1', '2 experts beat 1', '0.02'),
      gain('experts_4', 'experts_2', '4 experts beat 2', '0.03'),
      gain('experts_8', 'experts_4', '8 experts beat 4', '0.04'),
      gain('experts_16', 'experts_8', '16 experts beat 8', '0.04'),
      gain('experts_32', 'experts_16', '32 experts beat 16', '0.03'),
      gain('experts_64', 'experts_32', '64 experts beat 32', '0.02'),
    ),
  ),
  'horizon_rates': Study(
    title='the learning rate over the horizon, chosen where no number is reported',
    minutes=91,
    files=('base.gin', 'long.gin', 'choose.gin'),
    claims=(),
  ),
  'horizon': Study(
    title='how many fewer steps experts need (Figure 5)',
    minutes=59,
    files=('base.gin', 'long.gin'),
    equal_flops=('dense', 'experts_32', 'experts_64'),
    claims=(
      *_fewer_for_the_lowest('experts_32'),
      *_fewer_for_the_lowest('experts_64'),
    ),
  ),
  'balance': Study(
    title='weight of the balance loss (equation 4)',
    minutes=9,
    files=_SHORT,
    claims=(
      lower('alpha_0.01', 'alpha_0', DROPPED, '0.01 drops fewer tokens than no balance loss', 'not given', 'of all'),
      gain('alpha_0.01', 'alpha_0', '0.01 has a lower loss than no balance loss', 'not given'),
      gain('alpha_0.01', 'alpha_0.1', '0.01 has a lower loss than 0.1', '0.01 is best of 0.1 to 0.00001'),
      gain('alpha_0.01', 'alpha_0.0001', '0.01 has a lower loss than 0.0001', '0.01 is best of 0.1 to 0.00001'),
    ),
  ),
  'capacity': Study(
    title='Switch, top-2 experts and dense by capacity factor (Table 1)',
    minutes=30,
    files=_SHORT,
    claims=(
      gain('switch_cf_1.0', 'dense', 'Switch at 1.0 beats the dense model', '0.170'),
      gain('switch_cf_1.0', 'moe_cf_1.0', 'at 1.0 Switch beats top-2', '0.011'),
      gain('switch_cf_1.25', 'moe_cf_1.25', 'at 1.25 Switch beats top-2', '0.006'),
      gain('switch_cf_1.25', 'moe_plain_cf_1.25', '... top-2 with gates as they are', 'not given', effect=0.006),
      gain('moe_cf_2.0', 'switch_cf_2.0', 'at 2.0 top-2 beats Switch', '0.007'),
      gain('switch_cf_2.0', 'switch_cf_1.0', 'Switch at 2.0 beats Switch at 1.0', '0.007'),
      lower('switch_cf_2.0', 'switch_cf_1.0', DROPPED, 'at 2.0 fewer tokens are dropped', 'not given', 'of all'),
    ),
  ),
  'precision': Study(
    title='selective precision (Table 2)',
    minutes=6,
    files=_SHORT,
    claims=(
      gain('selective', 'float32', 'a float32 router in bfloat16 is as good as float32', '0.002', near=_SAME),
      gain('selective', 'bfloat16', 'it is better than bfloat16 everywhere', 'diverged'),
    ),
  ),
  'init_scale': Study(
    title='scale of the initial weights (Table 3)',
    minutes=4,
    files=_SHORT,
    claims=(gain('scale_0.1', 'scale_1.0', 'a tenth of the usual scale has a lower loss early', '0.88'),),
  ),
  'exploration': Study(
    title='exploration of the router (Table 11)',
    minutes=8,
    files=_SHORT,
    claims=(
      gain('input_jitter', 'sample', 'jitter beats sampling', '0.102'),
      gain('input_jitter', 'input_dropout', 'jitter beats dropout of the input', '0.012'),
      gain('input_jitter', 'argmax', 'jitter beats argmax', '0.003'),
    ),
  ),
  'no_token_left_behind': Study(
    title='No-Token-Left-Behind (Appendix B)',
    minutes=4,
    files=_SHORT,
    claims=(
      lower('ntlb', 'top1', DROPPED, 'it drops fewer tokens', 'almost none dropped', 'of all'),
      gain('ntlb', 'top1', 'the loss is the same', 'no benefit', near=_SAME),
    ),
  ),
  'attention': Study(
    title='experts in self-attention (Table 10)',
    minutes=12,
    files=_SHORT,
    claims=(
      gain('attention', 'ffn', 'experts in attention beat experts in feed-forward networks', '0.024'),
      gain('both', 'ffn', 'experts in both beat those in feed-forward networks', '0.035'),
      gain('both', 'both_bfloat16', 'with them float32 beats bfloat16', 'diverges'),
    ),
  ),
  'routing_since': Study(
    title='routing since Switch (top-k of Mixtral and OLMoE, DeepSeek-V3)',
    minutes=12,
    files=_SHORT,
    equal_flops=('dense', 'switch', 'switch_biased', 'top2', 'fine_grained', 'fine_grained_biased'),
    claims=(
      gain('top2', 'switch', 'two experts of half the width beat one', 'Mixtral has them', effect=0.02),
      gain('fine_grained', 'switch', 'four finer ones and a shared one beat one', 'DeepSeekMoE: they do', effect=0.02),
      gain('switch_biased', 'switch', 'biases are as good as the balance loss', 'slightly better', near=_SAME),
      lower('switch_biased', 'switch', DROPPED, 'with biases fewer tokens are dropped', 'better balance', 'of all'),
      gain(
        'fine_grained_biased',
        'fine_grained',
        'sigmoids and biases beat softmax and loss',
        'slightly better',
        effect=0.02,
      ),
    ),
  ),
  'dense_large': Study(
    title='a dense model of 3.5 times the FLOPs (Figure 6)',
    minutes=12,
    claims=(
      gain(
        'experts_32',
        'dense_large',
        'experts with 1.3 times its parameters have a lower loss after as many steps',
        'not given',
        effect=0.03,
      ),
      gain(
        'experts_152',
        'dense_large',
        'experts with five times its parameters have a lower loss after as many steps',
        '0.06',
      ),
      fewer_steps('experts_152', 'dense_large', '... and need fewer steps for its last loss', '2.5 times', effect=0.5),
    ),
  ),
  'pretrained': Study(
    title='the models that the learning rate of fine-tuning is chosen with',
    minutes=3,
    files=('base.gin', 'choose.gin'),
    claims=(),
  ),
  'topic_rates': Study(
    title='the learning rate of fine-tuning to tell topics, chosen where no number is reported',
    minutes=6,
    files=(*_TUNE, 'choose.gin'),
    needs='pretrained',
    claims=(),
  ),
  'language_rates': Study(
    title='the learning rate of fine-tuning to tell languages, chosen where no number is reported',
    minutes=6,
    files=('base.gin', 'tune_language.gin', 'choose.gin'),
    needs='pretrained',
    claims=(),
  ),
  'finetune': Study(
    title='after fine-tuning to tell the topic of an article (Table 5, Appendix E)',
    minutes=12,
    files=_TUNE,
    needs='experts',
    equal_flops=('dense', *(f'experts_{n}' for n in (2, 8, 16, 64))),
    claims=(
      more_right('experts_64', 'dense', '64 experts beat the dense model', 'SuperGLUE +4.4 points', effect=4.4),
      predicts(
        ('dense', 'experts_2', 'experts_8', 'experts_16', 'experts_64'),
        'experts',
        'a lower loss before fine-tuning is a lower one after it',
        'mostly',
        effect=0.5,
      ),
    ),
  ),
  'expert_dropout': Study(
    title='dropout in fine-tuning until the training text is known (Table 4)',
    minutes=25,
    files=(*_TUNE, 'until_known.gin'),
    needs='experts',
    claims=(
      more_right('expert_0.4', 'dropout_0.1', 'expert dropout of 0.4 beats 0.1', 'GLUE +0.5 points', effect=0.5),
      more_right('expert_0.4', 'dropout_0.3', 'it beats dropout of 0.3 everywhere', 'GLUE +1.3 points', effect=1.3),
    ),
  ),
  'distillation': Study(
    title='what of a teacher is kept by a dense student (Tables 6 and 7)',
    minutes=43,
    claims=(
      gain(
        'teacher', 'dense', 'the teacher is better after as many steps', '0.2 (Table 6: a gain to distil)', effect=0.1
      ),
      kept('recipe', 'teacher', 'dense', 'the whole recipe keeps at least 25 %', '29 %', above=25.0, effect=4.0),
      kept('soft_labels', 'teacher', 'dense', 'soft labels alone keep something', '3 %', effect=3.0),
      kept(
        'soft_labels_and_weights',
        'teacher',
        'dense',
        "the teacher's weights add to soft labels",
        '17 %',
        than='soft_labels',
        effect=17.0,
      ),
      kept(
        'recipe',
        'teacher',
        'dense',
        'a mix of hard and soft labels adds to both',
        '9 %',
        than='soft_labels_and_weights',
        effect=9.0,
      ),
      kept('recipe', 'teacher', 'dense', 'the recipe beats the weights alone', 'not given', than='weights', effect=9.0),
      gain(
        'recipe',
        'recipe_8',
        'a teacher of 64 experts makes a better student than one of 8',
        'a shrinking share of a growing gain',
        effect=0.01,
      ),
    ),
  ),
  'distillation_tuned': Study(
    title='a fine-tuned teacher and its dense student (Table 8)',
    minutes=15,
    files=('base.gin', 'tune_language.gin'),
    needs='distillation',
    claims=(
      more_right(
        'teacher', 'dense', 'the fine-tuned teacher beats the fine-tuned dense model', 'SuperGLUE +6.6', effect=6.6
      ),
      kept('recipe', 'teacher', 'dense', 'the student keeps a part of it', '30 %', tuned=True, effect=30.0),
    ),
  ),
  'multilingual_rates': Study(
    title='the learning rate in a hundred languages, chosen where no number is reported',
    minutes=10,
    files=('base.gin', 'languages.gin', 'choose_languages.gin'),
    claims=(),
  ),
  'multilingual': Study(
    title='mSwitch and its dense twin in a hundred languages (Figure 8)',
    minutes=25,
    files=('base.gin', 'languages.gin'),
    equal_flops=('dense', 'mswitch'),
    claims=(
      by_language('mswitch', 'dense', language_gain, 'mean gain over languages', 'not given', 'nats', effect=0.02),
      by_language(
        'mswitch',
        'dense',
        lambda *of: 100.0 * (language_gain(*of) > 0),
        'more than nine of ten languages gain',
        '100 %',
        '%',
        above=90.0,
        effect=5.0,
      ),
      by_language(
        'mswitch',
        'dense',
        language_speed_up,
        'mean step speed-up of at least 2',
        '5 times',
        'times',
        above=2.0,
        effect=1.0,
      ),
      by_language(
        'mswitch',
        'dense',
        lambda *of: 100.0 * (language_speed_up(*of) >= 4),
        'nine of ten languages have one of 4',
        '91 %',
        '%',
        above=90.0,
        effect=10.0,
      ),
    ),
  ),
}
