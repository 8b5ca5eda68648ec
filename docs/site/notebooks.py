"""MkDocs hook: the notebooks of docs/notebooks/ as pages, with the outputs that are stored in them."""

import base64
import json
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mkdocs.config.defaults import MkDocsConfig
  from mkdocs.structure.files import Files

NOTEBOOKS = pathlib.Path(__file__).resolve().parents[1] / 'notebooks'


def to_page(notebook: Mapping[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
  """Returns a notebook as Markdown, and its pictures by file name.

  Args:
    notebook: as in the file, format 4.
    name: without a suffix; the pictures are called after it.
  """
  parts, pictures = [], {}
  for cell in notebook['cells']:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
      parts.append(re.sub(r'\]\((\w+)\.ipynb', r'](\1.md', source))
      continue
    parts.append(f'```python\n{source}\n```')
    for output in cell['outputs']:
      data = output.get('data', {})
      if 'image/png' in data:
        file = f'{name}_{len(pictures)}.png'
        pictures[file] = base64.b64decode(''.join(data['image/png']))
        parts.append(f'![What the cell draws]({file})')
      else:
        text = ''.join(output.get('text') or data.get('text/plain', ''))
        parts.append(f'```{{ .text .no-copy .output }}\n{text.rstrip()}\n```')
  heading, _, first = parts[0].partition('\n')
  where = f'*This page is a notebook: [{name}.ipynb]({name}.ipynb).*'
  return '\n\n'.join([heading, where, first, *parts[1:]]) + '\n', pictures


def on_files(files: 'Files', config: 'MkDocsConfig') -> None:
  """Adds a page for each notebook; the file itself is beside it, to be downloaded."""
  from mkdocs.structure.files import File

  for path in sorted(NOTEBOOKS.glob('*.ipynb')):
    text, pictures = to_page(json.loads(path.read_text(encoding='utf-8')), path.stem)
    files.append(File.generated(config, f'notebooks/{path.stem}.md', content=text))
    for file, content in pictures.items():
      files.append(File.generated(config, f'notebooks/{file}', content=content))
