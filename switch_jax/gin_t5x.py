"""What T5X and flaxformer call things, and what that is here: for the messages to those who come from there.

The table of docs/coming_from_t5x.md is taken through the parser row by row by its test; these are what is refused.
"""

import dataclasses
import re

from switch_jax import config

_LEAVE = 'no setting; leave it out, since'

# Flags of T5X's programs (t5x/main.py, train.py, eval.py, infer.py and scripts/xm_launch.py).
FLAGS = {
  'clone_github': 'there is no launcher; deploy/ has files for clusters',
  'copybara_config': 'there is no launcher; deploy/ has files for clusters',
  'model_dir': 'here it is --gin.MODEL_DIR=DIR',
  'multiprocess_gpu': 'give --coordinator_address, --num_processes and --process_id',
  'name': 'there is no launcher; deploy/ has files for clusters',
  'pip_install': 'there is no launcher; deploy/ has files for clusters',
  'project_dirs': 'here --gin_search_paths names folders of gin files, and PYTHONPATH those of task modules',
  'seqio_additional_cache_dirs': 'here it is --gin.config.DataConfig.cached_tasks_dir=DIR',
  'stderrthreshold': 'log lines of libraries are shown with --debug',
  'verbosity': 'log lines of libraries are shown with --debug',
  'shard_id': 'one command predicts on all its hosts; else split INPUT_FILE and name an OUTPUT_FILE for each part',
  'tpu_cores': 'there is no launcher; deploy/ has files for clusters',
}

RUN_MODES = {
  'export': 'python -m switch_jax.convert writes checkpoints for others',
  'precompile': '--run_mode=plan compiles without running',
}

# Macros of the gin files of T5X and flaxformer.
MACROS = {
  'ACTIVATION_PARTITIONING_DIMS': 'config.MeshConfig.rules',
  'ARCHITECTURE': 'config.ModelConfig',
  'BEAM_SIZE': "config.DecodingConfig.num_beams, with DECODING = 'beam'",
  'BIAS_INIT': f'{_LEAVE} nothing has biases',
  'CHECKPOINT_PATH': 'MODEL_DIR, and STEP for another step than the newest',
  'DECODER_SPARSE_LAYOUT': 'config.MoeConfig.decoder_layers',
  'DROPOUT_FACTORY': 'DROPOUT_RATE and EXPERT_DROPOUT_RATE, of a training',
  'DROPOUT_RATE': f'{_LEAVE} nothing is dropped here',
  'EMBED_DIM': 'config.ModelConfig.emb_dim',
  'ENCODER_SPARSE_LAYOUT': 'config.MoeConfig.encoder_layers',
  'EVALUATOR_NUM_EXAMPLES': 'NUM_EXAMPLES of --run_mode=eval with gin/runs/eval.gin',
  'EVALUATOR_USE_MEMORY_CACHE': f'{_LEAVE} examples are read as they are needed',
  'EVAL_EXPERT_CAPACITY_FACTOR': 'config.MoeConfig.eval_capacity_factor',
  'EVAL_OUTPUT_DIR': f'{_LEAVE} metrics and predictions go to MODEL_DIR/eval',
  'EXPERT_MLP_DIM': 'config.MoeConfig.expert_mlp_dim',
  'FEATURE_LENGTHS': 'INPUTS_LENGTH and TARGETS_LENGTH',
  'GROUP_SIZE': 'SEQUENCES_PER_GROUP (in rows of the batch, not tokens)',
  'HEAD_DIM': 'config.ModelConfig.head_dim',
  'INFER_OUTPUT_DIR': 'OUTPUT_FILE, one file of JSON lines for the lines of INPUT_FILE',
  'INIT_CHECKPOINT': 'INITIAL_CHECKPOINT_PATH',
  'JITTER_NOISE': 'config.MoeConfig.jitter_noise',
  'JSON_WRITE_N_RESULTS': f'{_LEAVE} --run_mode=eval writes all predictions',
  'LOSS_NORMALIZING_FACTOR': f'{_LEAVE} the loss is always the mean over target tokens',
  'MIXTURE_OR_TASK_MODULE': 'config.DataConfig.task_module',
  'MIXTURE_OR_TASK_NAME': "INPUT_FILE; a task's own examples are predicted with --run_mode=eval",
  'MLP_DIM': 'config.ModelConfig.mlp_dim',
  'MODEL': 'config.ModelConfig',
  'MODEL_NAME': f'{_LEAVE} python -m switch_jax.convert writes checkpoints and no SavedModel',
  'MODEL_OUTPUT_DIR': '--to of python -m switch_jax.convert',
  'MODEL_PARALLEL_SUBMESH': 'config.MeshConfig.model',
  'MOE_TRUNCATED_DTYPE': 'ACTIVATION_DTYPE, also of what experts are sent',
  'NUM_DECODER_LAYERS': 'config.ModelConfig.num_decoder_layers',
  'NUM_DECODER_SPARSE_LAYERS': 'config.MoeConfig.decoder_layers',
  'NUM_EMBEDDINGS': 'config.ModelConfig.vocab_size',
  'NUM_ENCODER_LAYERS': 'config.ModelConfig.num_encoder_layers',
  'NUM_ENCODER_SPARSE_LAYERS': 'config.MoeConfig.encoder_layers',
  'NUM_EXPERT_PARTITIONS': 'config.MeshConfig.expert',
  'NUM_HEADS': 'config.ModelConfig.num_heads',
  'NUM_MODEL_PARTITIONS': 'config.MeshConfig.model',
  'NUM_SELECTED_EXPERTS': "config.MoeConfig.router, 'top1', 'top2' or 'topk'",
  'OPTIMIZER': 'config.OptimizerConfig.name',
  'OUTPUT_FEATURES': f'{_LEAVE} the checkpoint records the vocabulary',
  'ROUTER_Z_LOSS_FACTOR': 'config.MoeConfig.router_z_loss_factor',
  'SCALE': 'config.ModelConfig.init_scale',
  'SHUFFLE_TRAIN_EXAMPLES': 'config.DataConfig.shuffle',
  'TASK_FEATURE_LENGTHS': 'INPUTS_LENGTH and TARGETS_LENGTH',
  'TF_EXAMPLE_FILE_PATHS': 'INPUT_FILE, one file of JSON lines',
  'TF_EXAMPLE_FILE_TYPE': f'{_LEAVE} INPUT_FILE has JSON lines',
  'TRAIN_EVAL_MIXTURE_OR_TASK_NAME': f'{_LEAVE} held-out text is that of MIXTURE_OR_TASK_NAME',
  'TRAIN_EXPERT_CAPACITY_FACTOR': 'config.MoeConfig.train_capacity_factor',
  'TRAIN_STEPS_RELATIVE': "TRAIN_STEPS, always this run's own steps",
  'USE_CACHED_TASKS_TRAIN_EVAL': 'USE_CACHED_TASKS, for both',
  'USE_HARDWARE_RNG': f'{_LEAVE} all noise comes from RANDOM_SEED and can be repeated',
}

# Fields of T5X's classes and functions: their last two names, with the scope that matters before them.
FIELDS = {
  'Adafactor.decay_rate': 'config.OptimizerConfig.decay_rate',
  'Adafactor.logical_factor_rules': 'config.OptimizerConfig.min_dim_size_to_factor',
  'Adafactor.step_offset': f'{_LEAVE} steps are counted from 0 in every run',
  'CheckpointConfig.restore': 'INITIAL_CHECKPOINT_PATH',
  'CheckpointConfig.save': 'CHECKPOINT_PERIOD',
  'DatasetConfig.batch_size': 'BATCH_SIZE',
  'DatasetConfig.mixture_or_task_name': 'MIXTURE_OR_TASK_NAME',
  'DatasetConfig.module': 'config.DataConfig.task_module',
  'DatasetConfig.pack': 'config.DataConfig.pack',
  'DatasetConfig.seed': 'RANDOM_SEED',
  'DatasetConfig.shuffle': 'config.DataConfig.shuffle',
  'DatasetConfig.split': 'config.DataConfig.eval_split (EVAL_SPLIT in gin/runs/eval.gin)',
  'train/DatasetConfig.split': 'config.DataConfig.train_split',
  'DatasetConfig.task_feature_lengths': 'TASK_FEATURE_LENGTHS',
  'DatasetConfig.use_cached': 'USE_CACHED_TASKS',
  'DatasetConfig.use_custom_packing_ops': f'{_LEAVE} there is one way of packing',
  'EncoderDecoderModel.aux_loss_factor': 'AUX_LOSS_FACTOR',
  'EncoderDecoderModel.label_smoothing': 'LABEL_SMOOTHING',
  'EncoderDecoderModel.loss_normalizing_factor': f'{_LEAVE} the loss is always the mean over target tokens',
  'EncoderDecoderModel.router_z_loss_factor': 'config.MoeConfig.router_z_loss_factor',
  'EncoderDecoderModel.z_loss': 'Z_LOSS',
  'Evaluator.num_examples': 'NUM_EXAMPLES of --run_mode=eval with gin/runs/eval.gin',
  'Evaluator.use_memory_cache': f'{_LEAVE} examples are read as they are needed',
  'JSONLogger.write_n_results': f'{_LEAVE} --run_mode=eval writes all predictions',
  'MoeLayer.num_experts': 'NUM_EXPERTS',
  'PjitPartitioner.logical_axis_rules': 'config.MeshConfig.rules',
  'PjitPartitioner.model_parallel_submesh': 'config.MeshConfig.model',
  'PjitPartitioner.num_partitions': 'config.MeshConfig.model',
  'MoePjitPartitioner.num_expert_partitions': 'config.MeshConfig.expert',
  'RestoreCheckpointConfig.dtype': f'{_LEAVE} parameters are float32, and ACTIVATION_DTYPE is of activations',
  'RestoreCheckpointConfig.mode': "CHECKPOINTS ('latest', 'all' or 'new') or STEP in gin/runs/eval.gin",
  'RestoreCheckpointConfig.path': 'INITIAL_CHECKPOINT_PATH to train, MODEL_DIR to evaluate and predict',
  'SaveCheckpointConfig.dtype': f'{_LEAVE} parameters are float32',
  'SaveCheckpointConfig.keep': 'config.CheckpointConfig.keep',
  'SaveCheckpointConfig.period': 'CHECKPOINT_PERIOD',
  'SaveCheckpointConfig.save_dataset': f'{_LEAVE} the position in the data is always saved',
  'SentencePieceVocabulary.sentencepiece_model_file': 'VOCABULARY',
  'T5Config.dtype': 'ACTIVATION_DTYPE',
  'Trainer.learning_rate_fn': 'config.OptimizerConfig.schedule',
  'Trainer.num_microbatches': 'NUM_MICROBATCHES',
  'create_learning_rate_scheduler.base_learning_rate': 'LEARNING_RATE',
  'create_learning_rate_scheduler.factors': 'config.OptimizerConfig.schedule',
  'create_learning_rate_scheduler.warmup_steps': 'config.OptimizerConfig.warmup_steps',
  'create_task_from_tfexample_file.inputs_key': 'INPUTS_KEY',
  'infer.checkpoint_period': f'{_LEAVE} a prediction goes on after the last line that OUTPUT_FILE has',
  'infer.mode': f'{_LEAVE} --run_mode=infer predicts, each text with its score, and --run_mode=eval scores targets',
  'infer.num_shards': 'one command on all its hosts',
  'infer.shard_id': 'one command on all its hosts',
  'predict_batch_with_aux.num_decodes': "config.DecodingConfig.num_beams, with DECODING = 'beam'",
  'temperature_sample.temperature': "config.DecodingConfig.temperature, with DECODING = 'sample'",
  'temperature_sample.topk': "config.DecodingConfig.top_k, with DECODING = 'sample'",
  'temperature_sample.topp': "config.DecodingConfig.top_p, with DECODING = 'sample'",
  'train.eval_period': 'EVAL_PERIOD',
  'train.eval_steps': 'EVAL_STEPS',
  'train.infer_eval_dataset_cfg': 'a command of its own, --run_mode=eval with gin/runs/eval.gin',
  'train.model_dir': 'MODEL_DIR',
  'train.random_seed': 'RANDOM_SEED',
  'train.relative_steps': "TRAIN_STEPS, always this run's own steps",
  'train.stats_period': 'LOG_PERIOD',
  'train.total_steps': 'TRAIN_STEPS',
  'train.train_eval_dataset_cfg': 'EVAL_PERIOD, None for no evaluation',
  'train.use_hardware_rng': f'{_LEAVE} all noise comes from RANDOM_SEED and can be repeated',
}

_MODEL_FIELDS = {field.name for field in dataclasses.fields(config.ModelConfig)}
# Modules of theirs, as their gin files import them. The last ones are functions of a program itself.
_MODULES = (
  'adafactor', 'checkpoints', 'decoding', 'dense', 'export_lib', 'gin_utils', 'models', 'moe_architecture',
  'moe_layers', 'moe_partitioning', 'moe_trainer', 'network', 'partitioning', 'routing', 'seqio', 't5_architecture',
  'trainer', 'utils', 'eval_script', 'infer_script', 'train_script', 'evaluate', 'infer', 'train',
)  # fmt: skip

# Gin files of theirs, by the end of their paths, and ours.
_FILES = (
  (r'runs/(pretrain|finetune|eval|infer)\.gin', r'gin/runs/\1.gin'),
  (r'runs/continue_pretrain\.gin', 'gin/runs/pretrain.gin with INITIAL_CHECKPOINT_PATH'),
  (r'runs/sparse_upcycle\.gin', 'gin/runs/upcycle.gin'),
  (r'runs/infer_from_tfexample_file\.gin', 'gin/runs/infer.gin, which reads JSON lines'),
  (r'runs/precompile\.gin', '--run_mode=plan'),
  (r'runs/export(_seqio)?\.gin', 'python -m switch_jax.convert'),
  (r'models/(switch_(?:base|large|xxl|c))\.gin', r'gin/models/\1.gin'),
  (r'models/tokens_choose_base\.gin', 'gin/models/moe_base.gin'),
  (r'models/(st_moe_(?:base|32b))\.gin', r'gin/models/\1.gin'),
  (r't5_1_\d/(base|large|xxl)\.gin', r'gin/models/t5_\1.gin, with the sizes of the paper'),
  (r'mt5/base\.gin', 'gin/models/mt5_base.gin'),
  (r'(t5x|flaxformer)/.*\.gin', 'a file of gin/models/ with one of gin/runs/'),
)


def file_hint(name: str) -> str | None:
  """Returns what a gin file of T5X or flaxformer is here, or None for another name."""
  if not re.search(r'(^|/)(t5x|flaxformer)/', name):
    return None
  found = ((re.search(f'{pattern}$', name), ours) for pattern, ours in _FILES)
  return next((match.expand(ours) for match, ours in found if match), None)


def is_theirs(module: str) -> bool:
  """Whether a module that a gin file imports says that the file is T5X's or made for it."""
  return module.partition('.')[0] in ('__main__', 't5x', 'flaxformer', 'seqio', 'fiddle')


def field_hint(scope: str, selector: str, field: str) -> str | None:
  """Returns what a field of T5X's is here, or None for another.

  Args:
    scope: gin's scope, as `train` in `train/utils.DatasetConfig.split`.
    selector: the class or function, with its module or without.
    field: its argument.
  """
  name = re.sub(r'^Moe(?=Trainer|EncoderDecoder|PjitPartitioner)', '', selector.rpartition('.')[2])
  for key in (f'{scope}/{name}.{field}', f'Moe{name}.{field}', f'{name}.{field}'):
    if key in FIELDS:
      return FIELDS[key]
  if name == 'T5Config' and field in _MODEL_FIELDS:
    return f'config.ModelConfig.{field}'
  if selector.startswith('export_lib.'):
    return 'python -m switch_jax.convert, which writes checkpoints for others'
  if selector.partition('.')[0] in _MODULES:
    return 'no setting of that name; docs/coming_from_t5x.md has those that have one'
  return None
