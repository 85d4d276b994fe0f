#!/usr/bin/env bash
# Data preparation on one node of a Slurm cluster, without GPUs and without job arrays: one process reads, one per core tokenizes.
#
#   sbatch jobs/slurm_prepare.sh yamls/data/redpajama.yaml [options of llmshearing prepare]
#
# Preparation goes on where it stopped: requeue the job or submit it again with the same line.
#SBATCH --job-name=llmshearing-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
    echo "usage: sbatch jobs/slurm_prepare.sh SPEC.yaml [options] (from the checkout; got: ${1:-nothing})" >&2
    exit 2
fi
if [[ -n ${VENV:-} ]]; then
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
fi

exec llmshearing prepare --workers "${SLURM_CPUS_PER_TASK:-32}" "$@"
