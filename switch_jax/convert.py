"""Converts checkpoints: `python -m switch_jax.convert --from=FORMAT:PATH --to=FORMAT:PATH`.

A piece of a tensor is in memory at a time, so a model may be far larger than the machine's memory.
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from switch_jax import launch
from switch_jax.config import ConfigError, ModelConfig, MoeConfig, UpcycleConfig, suggest

FORMATS = ('switch_jax', 't5x', 'huggingface')

_EPILOG = """\
FORMAT is switch_jax (a MODEL_DIR, or MODEL_DIR/checkpoints/<step>), t5x (the folder checkpoint_<step>, also gs://...)
or huggingface (a folder with config.json and safetensors, or a name of the hub). The target must not exist.

What no checkpoint records is printed with the value that is taken; fields of the model's configuration override it, in
gin files or as --gin.config.MoeConfig.eval_capacity_factor=2.0, in short --gin.eval_capacity_factor=2.0.

  python -m switch_jax.convert --from=t5x:/models/checkpoint_500100 --to=switch_jax:/models/switch_base_8
  python -m switch_jax.convert --from=t5x:/models/t5/checkpoint_1000000 --to=switch_jax:/models/t5_8 \\
      --upcycle --gin.num_experts=8
"""


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the flags; those of gin are taken out before."""
  parser = launch.ArgumentParser(
    prog='python -m switch_jax.convert',
    description='Convert checkpoints between switch_jax, T5X and Hugging Face.',
    epilog=_EPILOG,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--from', dest='source', required=True, metavar='FORMAT:PATH', help='what to read')
  add('--to', dest='target', required=True, metavar='FORMAT:PATH', help='what to write; it must not exist')
  add('--gin_file', action='append', default=[], metavar='FILE', help='fields of ModelConfig, MoeConfig, UpcycleConfig')
  add('--gin_search_paths', default='', metavar='DIRS', help='folders, with commas, to look for gin files in')
  add('--upcycle', action='store_true', help='make experts of a dense model, or more or fewer of them')
  add('--optimizer_state', default='keep', choices=('keep', 'drop'), help="Adafactor's moments (default: keep)")
  add('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of parameters in t5x and huggingface')
  add('--max_shard_bytes', type=int, default=5 * 10**9, metavar='N', help='size of a file in huggingface')
  add('--license', metavar='NAME', help="of the model card in huggingface, by the hub's name: apache-2.0")
  add('--debug', action='store_true', help='show tracebacks')
  return parser


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags, and the gin bindings as `NAME=VALUE`."""
  from switch_jax.main import split_gin_bindings

  others, bindings = split_gin_bindings(argv)
  return make_parser().parse_args(others), bindings


def split_place(place: str, flag: str) -> tuple[str, str]:
  """Returns format and path of `FORMAT:PATH`. Raises a `ConfigError` if it is something else."""
  format, colon, path = place.partition(':')
  if not colon or not path:
    raise ConfigError(f'{flag} is {place!r}; write FORMAT:PATH, with one of the formats {", ".join(FORMATS)}.')
  if format not in FORMATS:
    raise ConfigError(
      f'{flag}: the format {format!r} is unknown; known are {", ".join(FORMATS)}.{suggest(format, FORMATS)}'
    )
  return format, path


def read_overrides(
  gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any] | None]:
  """Returns the fields of the model's configuration, and of `UpcycleConfig`, that gin files and flags set.

  What a gin file sets of other classes (a run's optimizer, say) does not matter here; on the command line it is an
  error.

  Args:
    gin_files: files, the later over the earlier.
    bindings: `NAME=VALUE`; NAME is a field (`config.MoeConfig.jitter_noise`, or only `jitter_noise`) or a macro that
      one of the files uses for a field.
    search_paths: more folders to look for files in.

  Raises:
    ConfigError: a name is unknown, or a value is none.
  """
  from switch_jax import gin_statements
  from switch_jax.gin_statements import Macro, Reference, leaves

  classes = {'ModelConfig': ModelConfig, 'MoeConfig': MoeConfig, 'UpcycleConfig': UpcycleConfig}
  homes = {f.name: owner for owner, cls in classes.items() for f in dataclasses.fields(cls) if f.name != 'moe'}
  reader = gin_statements.Reader(gin_statements.search_roots(search_paths))
  for name in gin_files:
    reader.read_file(name, f'--gin_file={name}')
  for binding in bindings:
    reader.read_flag(binding)
  effective = {}
  for binding in reader.bindings:
    if not binding.file and not binding.owner and binding.name in homes:
      binding = dataclasses.replace(binding, owner=homes[binding.name])
    effective[binding.key] = binding
  used = set()

  def value_of(binding):
    value, chain = binding.value, []
    while isinstance(value, Macro):
      used.add(value.name)
      if ('', '', value.name) not in effective:
        raise ConfigError(f'{binding.place}: %{value.name} has no value; set it with --gin.{value.name}=VALUE.')
      if value.name in chain:
        circle = ' = '.join(f'%{name}' for name in (*chain, value.name))
        place = effective['', '', chain[-1]].place
        raise ConfigError(f'{place}: {circle} goes in a circle; give one of them a value.')
      chain.append(value.name)
      value = effective['', '', value.name].value
    if any(isinstance(leaf, Macro | Reference) for leaf in leaves(value)):
      raise ConfigError(f'{binding.place}: conversions take plain values of fields.')
    return value

  found: dict[str, dict[str, Any]] = {owner: {} for owner in classes}
  for binding in effective.values():
    if binding.owner in classes and binding.name != 'moe' and not binding.scope:
      found[binding.owner][binding.name] = value_of(binding)
  known = [*homes, *(b.name for b in effective.values() if not b.owner and b.file)]
  for binding in effective.values():
    if not binding.file and binding.owner not in classes and binding.name not in used:
      raise ConfigError(
        f'{binding.place} changes nothing here: fields of ModelConfig, MoeConfig and UpcycleConfig do, and macros that '
        f'a --gin_file uses for them.{suggest(binding.name, known) or suggest(binding.name.lower(), known)}'
      )
  of_upcycle = found.pop('UpcycleConfig')
  wants_upcycling = any(b.owner == 'RunConfig' and b.name == 'upcycle' and b.value for b in effective.values())
  return {**found['ModelConfig'], **found['MoeConfig']}, of_upcycle if of_upcycle or wants_upcycling else None


def _run(argv: Sequence[str]) -> int:
  flags, bindings = _parse(argv)
  (source_format, source), (target_format, target_path) = (
    split_place(flags.source, '--from'),
    split_place(flags.target, '--to'),
  )
  search_paths = [path for path in flags.gin_search_paths.split(',') if path]
  overrides, of_upcycle = read_overrides(flags.gin_file, bindings, search_paths)
  launch.quiet_logging(flags.debug)
  from switch_jax.folders.claim import Claim
  from switch_jax.folders.model_dir import owner_beside
  from switch_jax.interop import conversion, hub, huggingface_files, infer_config, loading, upcycling

  huggingface_files.check_license(flags.license)
  if flags.license and target_format != 'huggingface':
    raise ConfigError('--license is for huggingface, whose model card has a place for it.')
  if flags.max_shard_bytes < 1:
    raise ConfigError(f'--max_shard_bytes is {flags.max_shard_bytes}; it must be at least 1.')
  target = conversion.check_target(target_path)
  if of_upcycle is not None and not flags.upcycle:
    flags.upcycle = True
  if source_format == 'huggingface':
    source = hub.local_folder(source)
  checkpoint = loading.open_checkpoint(source_format, source)
  if flags.upcycle:
    config = upcycling.target_config(checkpoint, overrides)
    checkpoint = upcycling.upcycle(checkpoint, config, UpcycleConfig(**(of_upcycle or {})))
  else:
    config = infer_config.model_config(checkpoint, overrides)
  checkpoint.verify()
  checkpoint, dropped = _optimizer_state(checkpoint, flags.optimizer_state, target_format)
  print(_describe(flags, checkpoint, config, overrides, dropped), flush=True)

  record, files = _beside(flags, source_format, source, target_format, checkpoint, config)
  if target_format == 'switch_jax' and flags.dtype != 'float32':
    raise ConfigError('--dtype is for t5x and huggingface; parameters of switch_jax are float32.')
  make = functools.partial(
    conversion.make_writer,
    target_format,
    checkpoint=checkpoint,
    config=config,
    dtype=flags.dtype,
    record=record,
    max_shard_bytes=flags.max_shard_bytes,
  )
  description = {
    'from': f'{source_format}:{source}',
    'source': conversion.fingerprint(source),
    'to': f'{target_format}:{target}',
    'model': config.to_json(),
    'upcycle': of_upcycle if flags.upcycle else None,
    'dtype': flags.dtype,
    'max_shard_bytes': flags.max_shard_bytes,
  }
  claim = Claim(owner_beside(target), f'the target {target}', 'name another folder')
  with claim, _progress_bar() as progress:
    continued = conversion.convert(target, lambda folder: make(folder), description, progress, files)
  if continued:
    print(f'continued an earlier conversion, which had finished {continued} tensors')
  print(f'wrote {target}')
  return 0


def _beside(
  flags: argparse.Namespace, source_format: str, source: str, target_format: str, checkpoint: Any, config: ModelConfig
) -> tuple[dict[str, Any], dict[str, bytes]]:
  """Returns what config.json of our own format is to record, and the files beside the weights; says what they are."""
  from switch_jax.folders.model_dir import split_step
  from switch_jax.interop import huggingface_files, huggingface_tokenizer, own

  record: dict[str, Any] = {'vocabulary': None, 'identity': {}, 'source': f'{source_format}:{source}'}
  files: dict[str, bytes] = {}
  words, model_dir, step = '', None, checkpoint.step
  if source_format == 'huggingface':
    record['vocabulary'], files, words = huggingface_tokenizer.read_vocabulary(source)
  elif source_format == 'switch_jax':
    run, recorded = split_step(source)[0], own.record(source)
    model_dir = str(run.path)
    if run.vocabulary.exists():
      files[run.vocabulary.name] = run.vocabulary.read_bytes()
    if flags.upcycle:  # what was recorded of the run, and measured, is of another model
      record['vocabulary'], step = recorded.get('vocabulary'), None
    else:
      record = recorded
  if target_format == 'huggingface':
    files, words = huggingface_files.make_files(config, record, step, model_dir, flags.license)
  if words and target_format != 't5x':
    print(f'  {"tokenizer" if target_format == "huggingface" else "vocabulary"}: {words}')
  return record, {} if target_format == 't5x' else files


def _optimizer_state(checkpoint: Any, wish: str, target_format: str) -> tuple[Any, str]:
  """Returns the checkpoint with the optimizer's state or without, and why it is left out, in words."""
  if checkpoint.moments is None:
    return checkpoint, 'there is none'
  if wish == 'drop':
    return dataclasses.replace(checkpoint, moments=None), 'left out, as asked'
  if target_format == 'huggingface':
    return dataclasses.replace(checkpoint, moments=None), 'left out: the format has no place for it'
  return checkpoint, ''


def _describe(
  flags: argparse.Namespace, checkpoint: Any, config: ModelConfig, overrides: Mapping[str, Any], dropped: str
) -> str:
  """Returns what was taken from the checkpoint and what was assumed, for people."""
  from switch_jax.interop import infer_config

  count = sum(functools.reduce(lambda a, b: a * b, array.shape, 1) for array in checkpoint.arrays.values())
  assumed = infer_config.assumptions(checkpoint, config, overrides)
  lines = [f'{flags.source}: {count:,} parameters in {len(checkpoint.arrays)} tensors']
  taken = {
    name: getattr(config, name)
    for name in (
      'vocab_size',
      'emb_dim',
      'num_heads',
      'head_dim',
      'mlp_dim',
      'num_encoder_layers',
      'num_decoder_layers',
    )
  }
  taken['logits_via_embedding'] = config.logits_via_embedding
  if config.moe:
    taken |= {name: getattr(config.moe, name) for name in ('num_experts', 'encoder_layers', 'decoder_layers')}
  taken |= {name: value for name, value in checkpoint.recorded.items() if config.moe or hasattr(config, name)}
  taken = {name: value for name, value in taken.items() if name not in overrides}
  for title, fields in (('from the checkpoint', taken), ('assumed', assumed), ('given', overrides)):
    if fields:
      lines.append(f'  {title}: ' + ', '.join(f'{name}={value!r}' for name, value in fields.items()))
  if assumed:
    lines.append('  (assumed: as in the released models; override with --gin.NAME=VALUE)')
  lines.append(f'  step: {"not recorded, taken as 0" if checkpoint.step is None else checkpoint.step}')
  lines.append(f"  optimizer's state: {dropped or 'kept'}")
  lines += [f'  not read: {what}' for what in checkpoint.left_out]
  if flags.target.startswith('huggingface:') and config.moe and config.is_decoder_only:
    lines.append('  Hugging Face drops no token of a Mixtral, in training neither: capacities are not written')
  elif flags.target.startswith('huggingface:') and config.moe:
    lines.append(
      '  Hugging Face routes each sequence as a group of its own, padding included, and has no capacity factors: '
      + (
        'expert_capacity is written so large that no token is dropped'
        if config.moe.expert_capacity is None
        else f'expert_capacity={config.moe.expert_capacity} tokens of a sequence'
      )
    )
  if flags.dtype == 'bfloat16':
    lines.append('  parameters are rounded to bfloat16')
  return '\n'.join(lines)


@contextlib.contextmanager
def _progress_bar():
  """Yields the function that moves a bar on the terminal."""
  import tqdm

  with tqdm.tqdm(unit='B', unit_scale=True, dynamic_ncols=True, leave=False) as bar:

    def progress(done: int, total: int, name: str) -> None:
      bar.total = total
      bar.set_postfix_str(name[-40:], refresh=False)
      bar.update(done - bar.n)

    yield progress


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit status: 0, 1 for an error, 130 after Ctrl-C."""
  argv = sys.argv[1:] if argv is None else argv
  return launch.exit_status(_run, argv, interrupted='the same command goes on from here')


if __name__ == '__main__':
  sys.exit(main())
