#!/usr/bin/env bash
# A run over several nodes of a Slurm cluster: continued pre-training at the paper's size.
#
#   sbatch jobs/slurm_continue.sh yamls/continue/llama2_1.3b.yaml [key=value ...]
#   sbatch --nodes=4 jobs/slurm_continue.sh ...          # any number of nodes
#
# One Slurm task per node; each starts Composer's launcher, which starts one process per GPU. Data, source and save_folder must be on a
# file system that all nodes see, or at a remote address. Otherwise as slurm_train.sh.
#SBATCH --job-name=llmshearing
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=96:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
    echo "usage: sbatch jobs/slurm_continue.sh RUN.yaml [key=value ...] (from the checkout; got: ${1:-nothing})" >&2
    exit 2
fi
if [[ -n ${VENV:-} ]]; then
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
fi

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-8}
WORLD=$((SLURM_JOB_NUM_NODES * GPUS_PER_NODE))
MASTER_ADDR=${hosts%%$'\n'*}                    # the first node
MASTER_PORT=$((29400 + SLURM_JOB_ID % 1000))    # so that two jobs on one node do not meet
export GPUS_PER_NODE WORLD MASTER_ADDR MASTER_PORT
export FSDP_VERSION=2 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

# The node's number is known in the task only, hence the inner shell. If one node fails, all end, and --requeue can start again.
# shellcheck disable=SC2016
exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-64}" \
    --kill-on-bad-exit=1 --label bash -c '
    exec jobs/composer_step.sh -n "$GPUS_PER_NODE" --world_size "$WORLD" --node_rank "$SLURM_NODEID" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" llmshearing/train.py "$@"
' composer_step "$@"
