#!/usr/bin/env bash
# Run the GPU tests and benchmarks. Results go to results/<gpu>.json and results/<gpu>.md.
#   pip install -e '.[dev,dali]'
#   bash scripts/gpu_check.sh [--parts "tests loaders"] [--tiny] [other flags of benchmarks/gpu.py]
# Each row is saved at once, and a part that fails does not stop the others. It should take about 20 minutes on 16
# cores (an estimate, not measured yet). With --tiny it needs no GPU and only checks that every part runs.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

parts="prepare tests pixels loaders options memory train"
flags=()
while [ $# -gt 0 ]; do
    case $1 in
        --parts) parts=$2; shift 2 ;;
        *) flags+=("$1"); shift ;;
    esac
done
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3

failed=()
for part in $parts; do
    echo "== $part ($(date +%T))"
    PYTHONPATH=. timeout "${PART_TIMEOUT:-540}" "$python" benchmarks/gpu.py "$part" ${flags[@]+"${flags[@]}"} \
        || failed+=("$part")
done
echo "== done ($(date +%T)); failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
