#!/usr/bin/env bash
# The entry point of the Docker image: what it does with its arguments.
#
#   docker run IMAGE OPTIONS OF main.py             train on all GPUs, or on the CPUs
#   docker run IMAGE convert --dataset D -o STORE   convert (folder2lmdb.py)
#   docker run IMAGE store verify STORE             python -m imagelmdb: info, verify, view, export
set -euo pipefail
cd "$(dirname "$0")/.."

# numba uses a cache only if it may write to it.
if [ -d compiled ]; then
    NUMBA_CACHE_DIR=$(mktemp -d) && export NUMBA_CACHE_DIR
    cp -r compiled/. "$NUMBA_CACHE_DIR"
fi

case ${1-} in
    -h | --help)
        awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
        exec python3 main.py --help
        ;;
    convert)
        shift
        exec python3 folder2lmdb.py "$@"
        ;;
    store)
        shift
        exec python3 -m imagelmdb "$@"
        ;;
esac
exec bash scripts/train.sh "$@"
