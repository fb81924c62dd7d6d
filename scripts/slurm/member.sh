#!/usr/bin/env bash
# One task of a job array: start number $SLURM_ARRAY_TASK_ID of an algorithm. submit.sh submits it:
#
#   member.sh SITE DATASET ALGORITHM DIR [K=V...]       SITE: the site's shell file, or ''
#
# The run in DIR/DATASET/ALGORITHM_<start> is begun, continued from its newest checkpoint, or left alone if finished, so
# the task may be started any number of times: after a preempted or failed node, or by itself when its time is up.
#
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail

site=$1 dataset=$2 algorithm=$3 directory=$4 start=$SLURM_ARRAY_TASK_ID
shift 4
printf -v name '%s_%03d' "$algorithm" "$start"
run=$directory/$dataset/$name
if [[ $site ]]; then
    set +eu # for conda's scripts and those of modules
    # shellcheck source=/dev/null
    source "$site"
    set -eu
fi

newest() { # the name of the newest checkpoint, if there is one
    cat "$run/checkpoints/latest" 2>/dev/null || true
}
at_start=$(newest)

time_is_up() { # two minutes before the limit: wait for another turn, unless it would not come further than this one
    if [[ $(newest) == "$at_start" ]]; then
        echo "error: no checkpoint within the time limit; raise the limit, or lower report.checkpoint_every" >&2
        exit 1
    fi
    echo "time is up at ${at_start:+$at_start, now }$(newest): requeued" >&2
    # by this name, for SLURM_JOB_ID is that of the whole array in its last task; SLURM then ends this script
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$start"
    wait $!
}
trap time_is_up USR1

resume=()
[[ -f $run/config.yaml ]] && resume=(--resume "$run")
echo "$name, start ${SLURM_RESTART_COUNT:-0} of the task, on $(hostname)" >&2
python train.py -c "configs/$dataset.yaml" "configs/$algorithm.yaml" --seed "$start" --sample \
    -l "$directory" -g "$dataset" -n "$name" ${1+-s "$@"} "${resume[@]}" &
wait $! # in the foreground it would keep the signal waiting
