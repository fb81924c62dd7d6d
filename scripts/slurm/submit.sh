#!/usr/bin/env bash
# Submit the random starts of a data set to SLURM: one job array per algorithm, one run per task.
#
#   scripts/slurm/submit.sh DATASET [--algorithms NAME...] [--starts N] [--time LIMIT] [-l DIR] [-s K=V...]
#                           [--only-print] [-- OPTIONS OF SBATCH...]
#
#   DATASET         configs/DATASET.yaml, such as penn_treebank or cifar10
#   --algorithms    configs/NAME.yaml, ...; default: the nine of the study
#   --starts N      task i of every array, 0 to N-1, is start i, with seed i for every algorithm; default 50
#   --time LIMIT    instead of the limits in time_limits.txt
#   -l DIR          runs go to DIR/DATASET/NAME_i, what tasks print to DIR/slurm; default runs
#   -s K=V...       overrides for every run, as for train.py
#   --only-print    check everything and print the sbatch commands
#
# What differs between clusters is in sbatch's own variables (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_GPUS, ...) and in
# the shell file $HYPEROPT_ID_SITE (default: site.sh beside this file, if there is one), which this script and every
# task read first. The same command again completes what is missing: finished runs are left as they are.
set -euo pipefail
LC_ALL=C # so that [a-z] means lower case in patterns

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
algorithms=(Random Random_SteppedLR Lorraine Baydin Ours_LR Ours_LR_Momentum Ours_HDLR_Momentum DiffThroughOpt
    Random_Validation)
starts=50 limit='' directory=runs only_print='' overrides=() options=()

fail() {
    echo "error: $*" >&2
    exit 2
}

names() { # names PREFIX: the configs that begin so
    (cd "$root/configs" && find . -name "$1*.yaml" -printf '%f\n' | sed 's/\.yaml$//' | sort | paste -sd' ')
}

limit_of() { # limit_of ALGORITHM: its time limit, from --time or from the table
    local found=$limit
    [[ $found ]] || found=$(awk -v d="$dataset" -v a="$1" '$1 == d && $2 == a { print $3 }' "$here/time_limits.txt")
    [[ $found ]] || fail "no time limit for $1 on $dataset: give --time, or add a line to $here/time_limits.txt"
    echo "$found"
}

# Arguments
case ${1-} in
-h | --help) sed -n '2,/^set/ { s/^# \{0,1\}//p }' "${BASH_SOURCE[0]}" && exit ;;
'' | -*) fail "name the data set first, as in: submit.sh cifar10" ;;
esac
dataset=$1
shift
while (($#)); do
    option=$1 values=()
    shift
    [[ $option == -- ]] && options=("$@") && break
    while (($#)) && [[ $1 != -* ]]; do
        values+=("$1")
        shift
    done
    case $option:${#values[@]} in
    --only-print:0) only_print=yes ;;
    --starts:1) starts=${values[0]} ;;
    --time:1) limit=${values[0]} ;;
    -l:1) directory=${values[0]} ;;
    -s:[1-9]*) overrides+=("${values[@]}") ;;
    --algorithms:[1-9]*) algorithms=("${values[@]}") ;;
    *) fail "cannot make sense of: $option ${values[*]}; submit.sh --help shows the options" ;;
    esac
done
[[ $starts =~ ^[1-9][0-9]*$ ]] || fail "--starts must be a whole number above 0, not $starts"
[[ $dataset == [a-z]* && -f $root/configs/$dataset.yaml ]] ||
    fail "unknown data set $dataset; there are: $(names '[a-z]')"
for algorithm in "${algorithms[@]}"; do
    [[ $algorithm == [A-Z]* && -f $root/configs/$algorithm.yaml ]] ||
        fail "unknown algorithm $algorithm; there are: $(names '[A-Z]')"
    limit_of "$algorithm" >/dev/null
done
directory=$(realpath -m "$directory")

# The cluster, and whether every run would start there
site=${HYPEROPT_ID_SITE-$here/site.sh}
[[ -f $site || ! ${HYPEROPT_ID_SITE-} ]] || fail "HYPEROPT_ID_SITE names $site, which is not there"
if [[ -f $site ]]; then
    site=$(realpath "$site")
    set +eu # for conda's scripts and those of modules
    # shellcheck source=/dev/null
    source "$site"
    set -eu
else
    site=''
fi
[[ $only_print ]] || command -v sbatch >/dev/null ||
    fail "sbatch is not found: submit where SLURM is installed, or see the commands with --only-print"
command -v python >/dev/null || fail "python is not found: activate its environment in $here/site.sh or before"
cd "$root"
for algorithm in "${algorithms[@]}"; do
    files=("configs/$dataset.yaml" "configs/$algorithm.yaml")
    python train.py -c "${files[@]}" -s "population.sample=true" "${overrides[@]}" --print-config >/dev/null || exit
done

[[ $only_print ]] || mkdir -p "$directory/slurm" # SLURM makes no folders
for algorithm in "${algorithms[@]}"; do
    command=(sbatch --parsable --job-name="${dataset}_$algorithm" --array="0-$((starts - 1))"
        --time="$(limit_of "$algorithm")" --chdir="$root" --output="$directory/slurm/%x_%a.out" "${options[@]}"
        "$here/member.sh" "$site" "$dataset" "$algorithm" "$directory" "${overrides[@]}")
    if [[ $only_print ]]; then
        echo "${command[@]@Q}"
    else
        job=$("${command[@]}")
        echo "job array ${job%%;*}: $algorithm on $dataset, starts 0 to $((starts - 1)), into $directory/$dataset"
    fi
done
