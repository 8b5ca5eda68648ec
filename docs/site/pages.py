"""MkDocs hook: pages that are made of other files when the site is built, so that nothing is written twice.

README is the first page, BUILD_NOTES becomes one page a section, and the fields of gin are read from the dataclasses.
Importing this needs the standard library alone; MkDocs comes in with the hooks.
"""

import dataclasses
import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from switch_jax import config as configuration

if TYPE_CHECKING:
  from mkdocs.config.defaults import MkDocsConfig
  from mkdocs.structure.files import Files
  from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURES = ('benchmarks/pictures/', 'studies/pictures/')
# Files that are pages as they stand; links to them are turned to these.
PAGES = {
  'README.md': 'index.md',
  'CHANGELOG.md': 'changelog.md',
  'CONTRIBUTING.md': 'contributing.md',
  'deploy/README.md': 'deploy.md',
}
_FIELDS = """\
# All gin fields

A field is bound in a gin file as `config.ModelConfig.emb_dim = 512`, on the command line as
`--gin.config.ModelConfig.emb_dim=512`, and from Python as an argument of the class. Where a macro is named, the files
of `gin/` take the field from it, so that `--gin.BATCH_SIZE=64` is enough. Defaults are those of the classes; the files
of `gin/runs/` and `gin/models/` bind some fields to other values, and `MODEL_DIR/config.gin` has those of a run.
"""


def to_pages(text: str) -> str:
  """Turns links that hold in the repository, seen from its root or from docs/, to those between pages."""

  def turned(match: re.Match[str]) -> str:
    path, anchor = match[1].removeprefix('../').removeprefix('docs/'), match[2] or ''
    path = re.sub(r'\.ipynb$', '.md', path)
    for folder in PICTURES:
      path = path.replace(folder, 'pictures/')
    return f']({PAGES.get(path, path)}{anchor})'

  return re.sub(r'\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)', turned, text)


def design_pages() -> dict[str, tuple[str, str]]:
  """Returns path, title and text of a page for each section of BUILD_NOTES."""
  _, *sections = re.split(r'^## ', (ROOT / 'BUILD_NOTES.md').read_text(encoding='utf-8'), flags=re.M)
  pages = {}
  for section in sections:
    title, _, text = section.partition('\n')
    name = re.sub(r'\W+', '_', title.lower())
    headings = re.sub(r'^#(#+ )', r'\1', text, flags=re.M)
    pages[f'design/{name}.md'] = title, f'# {title}\n{headings}'
  return pages


def descriptions(cls: type) -> dict[str, str]:
  """Returns what the docstring of a dataclass says of its fields under `Attributes`."""
  entries = inspect.cleandoc(cls.__doc__ or '').partition('Attributes:\n')[2]
  found = {}
  for entry in re.split(r'\n(?=  \S)', entries):
    names, _, text = ' '.join(entry.split()).partition(': ')
    found |= {name: text for name in names.split(', ')}
  return found


def macros() -> dict[str, str]:
  """Returns the macro that the files of gin/ take a field from, by `Class.field`."""
  found = {}
  for path in sorted((ROOT / 'gin').glob('[elmr]*/*.gin')):
    block = ''
    for line in path.read_text(encoding='utf-8').splitlines():
      if match := re.match(r'config\.(\w+):', line):
        block = match[1]
      elif match := re.match(r'(?:  |config\.(\w+)\.)(\w+) = %(\w+)', line):
        found[f'{match[1] or block}.{match[2]}'] = match[3]
  return found


def _default(field: dataclasses.Field[Any]) -> str:
  if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
    return 'to be given'
  value = field.default_factory() if field.default is dataclasses.MISSING else field.default
  return f'`{type(value).__name__}()`' if dataclasses.is_dataclass(value) else f'`{value!r}`'


def _type(field: dataclasses.Field[Any]) -> str:
  text = field.type.__name__ if inspect.isclass(field.type) and not hasattr(field.type, '__args__') else str(field.type)
  text = re.sub(r'\b(?:typing|collections\.abc|switch_jax(?:\.\w+)*)\.', '', text)
  return re.sub(r'Literal\[(.*?)\]', lambda choices: choices[1].replace(', ', ' | '), text)


def classes() -> Iterator[type]:
  """Yields the configuration's dataclasses, in the order of their names."""
  for name in configuration.__all__:
    cls = getattr(configuration, name)
    if inspect.isclass(cls) and dataclasses.is_dataclass(cls) and dataclasses.fields(cls):
      yield cls


def field_page() -> str:
  """Returns a table for each class of the configuration: every field, its type, default, macro and description."""
  bound, parts = macros(), [_FIELDS]
  for cls in classes():
    told = descriptions(cls)
    intro = inspect.cleandoc(cls.__doc__ or '').partition('Attributes:\n')[0].strip()
    rows = ['| field | default | type | meaning |', '|---|---|---|---|']
    for field in dataclasses.fields(cls):
      macro = bound.get(f'{cls.__name__}.{field.name}')
      meaning = ' '.join(filter(None, (told.get(field.name, ''), macro and f'Macro `{macro}`.')))
      rows.append(f'| `{field.name}`{{.name}} | {_default(field)} | `{_type(field)}` | {meaning} |')
    parts.append(f'## {cls.__name__}\n\n{intro}\n\n' + '\n'.join(rows) + '\n')
  return '\n'.join(parts)


def on_config(config: 'MkDocsConfig') -> None:
  """Puts the pages of BUILD_NOTES into the navigation."""
  [design] = (entry['Design'] for entry in config.nav if 'Design' in entry)
  design += [{title: path} for path, (title, _) in design_pages().items()]


def on_files(files: 'Files', config: 'MkDocsConfig') -> None:
  """Adds what does not lie in docs/."""
  from mkdocs.structure.files import File

  pages = {page: (ROOT / path).read_text(encoding='utf-8') for path, page in PAGES.items()}
  pages |= {path: text for path, (_, text) in design_pages().items()}
  for path, text in (pages | {'gin_fields.md': field_page()}).items():
    files.append(File.generated(config, path, content=text))
  for picture in (path for folder in PICTURES for path in (ROOT / folder).iterdir()):
    files.append(File.generated(config, f'pictures/{picture.name}', abs_src_path=str(picture)))


def on_page_markdown(markdown: str, page: 'Page', **_: object) -> str:
  """Turns the links of a page; notebooks.py has done it for its own."""
  return markdown if page.file.src_uri.startswith('notebooks/') else to_pages(markdown)
