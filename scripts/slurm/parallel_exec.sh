#!/usr/bin/env bash
# scripts/parallel_exec.py on the nodes of a SLURM job, which are a Ray cluster as long as the job runs:
#
#   sbatch --nodes=4 --cpus-per-task=16 --time=8:00:00 scripts/slurm/parallel_exec.sh \
#       -c configs/uci_energy.yaml --algorithms Random Ours_LR_Momentum --repetitions 200 --workers 64 -g energy
#
# Submit it in the root of the repository. What follows the script's name goes to parallel_exec.py, with --address.
# When the time is nearly up, the job requeues itself and continues from the checkpoints, so name a directory for the
# runs (-g). $HYPEROPT_ID_SITE (default: scripts/slurm/site.sh, if there is one) is read first, on the first node.
#
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}

[[ -f scripts/parallel_exec.py ]] || fail "submit in the root of the repository, not in $PWD"
site=${HYPEROPT_ID_SITE-scripts/slurm/site.sh}
[[ -f $site || ! ${HYPEROPT_ID_SITE-} ]] || fail "HYPEROPT_ID_SITE names $site, which is not there"
if [[ -f $site ]]; then
    set +eu # for conda's scripts and those of modules
    # shellcheck source=/dev/null
    source "$site"
    set -eu
fi
command -v ray >/dev/null || fail "ray is not found: install the extra 'baselines', activate it in $site"
runs=$(python - "$@" <<'PYTHON'
import sys

sys.path.insert(0, "scripts")
import parallel_exec

from hyperopt_id.options import ended

options = parallel_exec.parser().parse_args(sys.argv[1:])
sys.exit(ended(lambda: print(parallel_exec.plan(options)[0].directory.parent)))
PYTHON
) || exit
progress() { # a number that changes with every checkpoint, and when a run is finished
    local files=(-path '*/checkpoints/latest' -o -name summary.json)
    { find "$runs" \( "${files[@]}" \) -exec cksum {} + 2>/dev/null || true; } | sort | cksum # some go away meanwhile
}
at_start=$(progress)

# Ports, folder and token of this job alone: jobs may share a node. The folder is one that every node has for itself, with
# a name short enough for the sockets in it, which $TMPDIR need not be.
port=$((20000 + SLURM_JOB_ID % 5000 * 2)) folder=/tmp/ray_$SLURM_JOB_ID nodes=$SLURM_JOB_NUM_NODES
host=$(scontrol show node --oneliner "$SLURMD_NODENAME" | sed 's/.* NodeAddr=\([^ ]*\).*/\1/')
host=$(getent ahostsv4 "$host" | awk '{ print $1; exit }')
RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -d' ' -f1)
export RAY_AUTH_MODE RAY_AUTH_TOKEN
[[ ${SLURM_CPUS_PER_TASK-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over

# shellcheck disable=SC2016 # every node knows best what it has
start=(bash -c 'exec ray start --block --disable-usage-stats --temp-dir="$0" "$@" \
    --num-cpus="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"' "$folder")
started=()
stop() {
    kill "${started[@]}" 2>/dev/null || true
    wait "${started[@]}" || true
    srun --nodes="$nodes" --ntasks="$nodes" rm -rf "$folder" || true
}
trap stop EXIT
time_is_up() { # two minutes before the limit: wait for another turn, unless it would not come further than this one
    if [[ $(progress) == "$at_start" ]]; then
        echo "error: no checkpoint within the time limit; raise the limit, or lower report.checkpoint_every" >&2
        exit 1
    fi
    echo "time is up: requeued" >&2
    scontrol requeue "$SLURM_JOB_ID" # SLURM now ends all of it
    wait
}
trap time_is_up USR1

"${start[@]}" --head --node-ip-address="$host" --port="$port" --ray-client-server-port=$((port + 1)) \
    --include-dashboard=false &
started+=($!)
until (: <>"/dev/tcp/$host/$port") 2>/dev/null; do
    kill -0 "${started[0]}" 2>/dev/null || fail "Ray's head did not start on $host:$port"
    sleep 0.5
done
if ((nodes > 1)); then
    srun --relative=1 --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) "${start[@]}" --address="$host:$port" &
    started+=($!)
fi
python - "$host:$port" "$nodes" <<'PYTHON' || fail "not all of $nodes nodes joined Ray within five minutes"
import sys
import time

import ray

ray.init(address=sys.argv[1], logging_level="warning")
deadline = time.monotonic() + 300
while (joined := sum(node["Alive"] for node in ray.nodes())) < int(sys.argv[2]):
    if time.monotonic() > deadline:
        sys.exit(1)
    time.sleep(0.5)
has = ray.cluster_resources()
print(f"Ray has {joined} nodes, {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs", flush=True)
PYTHON

python scripts/parallel_exec.py "$@" --address "$host:$port" &
wait $! # in the foreground it would keep the signal waiting
