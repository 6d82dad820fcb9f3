#!/usr/bin/env bash
# Train on this machine, with one rank per GPU, or with one rank if there is no GPU.
#
#   bash scripts/train.sh [--nproc N] [--dry-run] OPTIONS OF main.py
#   bash scripts/train.sh --config configs/rn50_90e.yaml --train train-lmdb/ --val val-lmdb/ --lmdb
#
#   --nproc N    start N ranks
#   --dry-run    print the command and stop
#
# Environment: PYTHON is the interpreter (default: .venv/bin/python if it exists, otherwise python3).
# `python main.py --help` lists the options, and imagelmdb/errors.py the exit codes. A run that is stopped by SIGTERM,
# SIGUSR1, SIGHUP or Ctrl-C ends with 75. To continue, run the same command with --resume auto.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}

root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
python=${PYTHON:-$python}

command=("$python" "$root/scripts/torchrun.py")
dry=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
            exit
            ;;
        --nproc)
            [[ ${2-} =~ ^[1-9][0-9]*$ ]] || fail "--nproc ${2-}: give the number of ranks"
            command+=(--nproc-per-node "$2")
            shift
            ;;
        --dry-run) dry=1 ;;
        *) break ;;
    esac
    shift
done

command+=("$root/main.py" "$@")
printf '%q ' "${command[@]}"
echo
[ -n "$dry" ] || exec "${command[@]}"
