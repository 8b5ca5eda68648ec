"""Which languages a configuration asks for: checked against those there are, with the nearest code suggested."""

import difflib
from collections.abc import Iterable, Sequence

from switch_jax.config import ConfigError

# mC4's codes of 101 languages, and of the six that it also has in Latin letters: 107 in all.
# fmt: off
MC4 = (
  'af', 'am', 'ar', 'az', 'be', 'bg', 'bg-Latn', 'bn', 'ca', 'ceb', 'co', 'cs', 'cy', 'da', 'de', 'el', 'el-Latn',
  'en', 'eo', 'es', 'et', 'eu', 'fa', 'fi', 'fil', 'fr', 'fy', 'ga', 'gd', 'gl', 'gu', 'ha', 'haw', 'hi', 'hi-Latn',
  'hmn', 'ht', 'hu', 'hy', 'id', 'ig', 'is', 'it', 'iw', 'ja', 'ja-Latn', 'jv', 'ka', 'kk', 'km', 'kn', 'ko', 'ku',
  'ky', 'la', 'lb', 'lo', 'lt', 'lv', 'mg', 'mi', 'mk', 'ml', 'mn', 'mr', 'ms', 'mt', 'my', 'ne', 'nl', 'no', 'ny',
  'pa', 'pl', 'ps', 'pt', 'ro', 'ru', 'ru-Latn', 'sd', 'si', 'sk', 'sl', 'sm', 'sn', 'so', 'sq', 'sr', 'st', 'su',
  'sv', 'sw', 'ta', 'te', 'tg', 'th', 'tr', 'uk', 'ur', 'uz', 'vi', 'xh', 'yi', 'yo', 'zh', 'zh-Latn', 'zu',
)
# fmt: on
# mC4 has these codes of its own; whoever asks for the newer or a narrower one is told so.
SAME = {'he': 'iw', 'nb': 'no', 'nn': 'no', 'tl': 'fil', 'jw': 'jv', 'kmr': 'ku', 'ji': 'yi', 'in': 'id'}


def choose(wanted: Sequence[str], there: Iterable[str], what: str) -> list[str]:
  """Returns the languages that are wanted, in the order of those there are.

  Args:
    wanted: codes.
    there: codes of the languages with text.
    what: the task, for the message.

  Raises:
    ConfigError: there is no such language, or it has no text.
  """
  there = list(there)
  for code in wanted:
    if code in there:
      continue
    listed = f'It has {len(there)}: {", ".join(there)}.'
    if code in MC4:
      raise ConfigError(
        f'DataConfig.languages has {code!r}, a language without text in {what}; leave it out, or install a package '
        f'that brings some. {listed}'
      )
    base = code.replace('_', '-').partition('-')[0].lower()
    same = SAME.get(base, base)
    near = [same] if same in there else difflib.get_close_matches(code, there, n=3, cutoff=0.45)
    near = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
    raise ConfigError(f'DataConfig.languages has {code!r}, which is no language of {what}.{near} {listed}')
  return [code for code in there if code in wanted]
