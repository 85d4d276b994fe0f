#!/usr/bin/env bash
# A run on one node of a Slurm cluster: pruning, or anything else that fits eight GPUs.
#
#   sbatch jobs/slurm_train.sh yamls/prune/llama2_7b_to_1.3b.yaml [key=value ...]
#
# Submit from the checkout, with the environment active or VENV=/path/to/venv set. The shipped YAMLs resume by themselves: a job that
# was requeued, or submitted again with the same line, goes on from its last checkpoint.
#SBATCH --job-name=llmshearing
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
    echo "usage: sbatch jobs/slurm_train.sh RUN.yaml [key=value ...] (from the checkout; got: ${1:-nothing})" >&2
    exit 2
fi
if [[ -n ${VENV:-} ]]; then
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
fi
export FSDP_VERSION=2 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

# As a step: only steps are told before the time is up (--signal) or the node is taken away.
exec srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-64}" --kill-on-bad-exit=1 \
    jobs/composer_step.sh -n "${SLURM_GPUS_ON_NODE:-8}" llmshearing/train.py "$@"
