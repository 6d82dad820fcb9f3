#!/usr/bin/env bash
# Train on this machine: one rank a GPU, or one rank where there is none.
#
#   bash scripts/train.sh [--nproc N] [--dry-run] OPTIONS OF main.py
#   bash scripts/train.sh --config configs/rn50_90e.yaml --train train-lmdb/ --val val-lmdb/ --lmdb
#
#   --nproc N    so many ranks
#   --dry-run    print the command and stop
#
# Environment: PYTHON, the interpreter (default: .venv/bin/python where it is there, else python3).
# Exit codes: 0 done, 2 wrong use, 3 diverged, 75 stopped by SIGTERM or SIGUSR1 after a checkpoint: the same
# command with --resume auto goes on. `python main.py --help` lists the options.
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
