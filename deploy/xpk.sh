#!/usr/bin/env bash
# Trains on TPU slices of a cluster that xpk made (pip install xpk): bash deploy/xpk.sh. To edit: the three lines below.
# xpk runs the container as the image's user: build it with --build-arg USER_NAME=root, or the TPU cannot be opened.
set -euo pipefail

IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/switch_jax:TAG
BUCKET=gs://BUCKET
CLUSTER=(--project=PROJECT --zone=ZONE --cluster=CLUSTER --tpu-type=v6e-32)
NUM_SLICES=1

# xpk starts a workload again after the statuses 127 to 255 and those named, and ends it after any other one. It counts
# every restart, evictions too, hence many. 75: another host was lost. exec: its shell would keep SIGTERM to itself.
xpk workload create "${CLUSTER[@]}" --num-slices="$NUM_SLICES" --workload=switch-base --docker-image="$IMAGE" \
  --max-restarts=1000 --restart-on-exit-codes=75,130,143 --termination-grace-period-seconds=600 \
  --env="TFDS_DATA_DIR=$BUCKET/tensorflow_datasets" --env="JAX_COMPILATION_CACHE_DIR=$BUCKET/xla" \
  --command="exec python -m switch_jax.main \
    --gin_file=gin/models/switch_base.gin --gin_file=gin/runs/pretrain.gin \
    --gin.MODEL_DIR=$BUCKET/switch_base --gin.MIXTURE_OR_TASK_NAME=c4_v220_span_corruption \
    --gin.TRAIN_STEPS=550000 --gin.config.DataConfig.task_module=switch_jax.tasks.c4 \
    --gin.config.DataConfig.num_data_shards=64 --gin.config.MeshConfig.num_slices=$NUM_SLICES"
