#!/usr/bin/env bash
# composer "$@" as a Slurm task that can be told to stop. The other scripts start it through srun; not for use by hand.
#
# Slurm sends SIGTERM to the first process of a task only. Composer's launcher would pass it on, but kill the ranks 30 s later. So this
# shell is the first process and hands the signal to the ranks itself: the callback stop_on_sigterm has the scheduler's time to save.
set -euo pipefail

launcher='' told=''
trap 'told=yes; [[ -z $launcher ]] || pkill -TERM -P "$launcher" || true' TERM
composer "$@" &
launcher=$!
while :; do
    code=0
    wait "$launcher" || code=$?  # ended by a signal, too: then wait again
    [[ -n $told ]] || exit "$code"
    told=''
done
