"""SeqIO tasks and mixtures: importing a module registers those it defines. No model code.

The modules lie in the folder `tasks/` at the top of the repository, for people to find, and an installed package has it
as `switch_jax/share/tasks`. They are imported as `switch_jax.tasks.NAME`, which no folder of a working directory hides.

A run names one in its gin file or on the command line:

    --gin.MIXTURE_OR_TASK_NAME=docstrings_span_corruption
    --gin.config.DataConfig.task_module=switch_jax.tasks.docstrings

A module may define, beside its tasks,

    register(data)              called with the `switch_jax.config.DataConfig` of the run before the task is looked up;
                                for tasks that depend on the configuration
    corpus_digest(data) -> str  identifies the text; a run is continued only on the text it was started on
    describe(data) -> str       one line about the text, printed when a run begins

`docstrings` needs nothing but what is installed; `text_files` reads the user's own files. Your own module can live
anywhere on the Python path. One rule for it: no `from_generator` or `py_function` sources and no `tf.random` operation
that is not stateless, since the position of such a pipeline cannot be saved.
"""

import pathlib

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / 'share' / 'tasks', _PACKAGE.parent / 'tasks')

__path__ = [str(folder) for folder in _FOLDERS if (folder / 'text_to_text.py').is_file()][:1]
