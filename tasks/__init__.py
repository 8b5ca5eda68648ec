"""SeqIO tasks and mixtures: importing a module registers those it defines. No model code.

A run names one in its gin file or on the command line:

    --gin.MIXTURE_OR_TASK_NAME=docstrings_span_corruption       with config.DataConfig.task_module = 'tasks.docstrings'

A module may define, beside its tasks,

    register(data)              called with the `switch_jax.config.DataConfig` of the run before the task is looked up;
                                for tasks that depend on the configuration
    corpus_digest(data) -> str  identifies the text; a run is continued only on the text it was started on
    describe(data) -> str       one line about the text, printed when a run begins

`docstrings` needs nothing but what is installed; `text_files` reads the user's own files. Your own module can live
anywhere on the Python path. One rule for it: no `from_generator` or `py_function` sources and no `tf.random` operation
that is not stateless, since the position of such a pipeline cannot be saved.
"""
