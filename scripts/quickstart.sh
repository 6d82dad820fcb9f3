#!/usr/bin/env bash
# From nothing to a trained ResNet-18: install the project, make a sample data set, convert and verify it, train on
# it, and compare the speed of ImageFolder and of the store. Takes about 5 minutes on two CPU cores after the install.
#
#   bash scripts/quickstart.sh
#   bash scripts/quickstart.sh --data ~/data/cats_vs_dogs --epochs 20      # your own images
#
#   --data FOLDER   use FOLDER/train and FOLDER/val, which have one folder per class, instead of the sample
#   --out FOLDER    write everything to FOLDER (default: sample/, or sample/own/NAME with --data)
#
# All other options go to main.py. A second run reuses the environment, the stores and the finished epochs.
# Environment: PYTHON is the Python (3.10 or newer) that creates .venv (default: python3).
set -euo pipefail
start_dir=$PWD
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 2
}

run() {
    echo
    printf '+'
    printf ' %q' "$@"
    echo
    "$@"
}

absolute() {
    case $1 in /*) echo "${1%/}" ;; *) echo "$start_dir/${1%/}" ;; esac
}

data=
out=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "scripts/quickstart.sh"
            exit
            ;;
        --data | --out) [ -n "${2-}" ] || fail "$1 needs a folder" ;;
        *) break ;;
    esac
    case $1 in
        --data) data=$(absolute "$2") ;;
        --out) out=$(absolute "$2") ;;
    esac
    shift 2
done
if [ -n "$data" ]; then
    for split in train val; do
        [ -d "$data/$split" ] || fail "there is no folder $data/$split: --data takes a folder with train/ and val/ in it"
    done
    out=${out:-sample/own/$(basename "$data")}
fi
out=${out:-sample}

# The environment. pip runs again only if pyproject.toml has changed since it last succeeded.
python=.venv/bin/python
if ! [ -x $python ]; then
    base=${PYTHON:-python3}
    command -v "$base" >/dev/null || fail "$base is not installed: install Python 3.10 or newer, or set PYTHON"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$base is older than Python 3.10: set PYTHON"
    run "$base" -m venv .venv || fail "$base cannot create environments (on Debian and Ubuntu: apt install python3-venv)"
fi
if ! [ .venv/installed -nt pyproject.toml ]; then
    run $python -m pip install --quiet --disable-pip-version-check --editable . || fail "pip could not install the project"
    touch .venv/installed
fi
seconds_before=$SECONDS

if [ -z "$data" ]; then
    data=$out/images
    run $python -m imagelmdb.sample "$data"
fi
for split in train val; do
    store=$out/$split.lmdb
    if [ -e "$store" ] && $python -m imagelmdb info --json "$store" | grep -q '"complete": true'; then
        printf '\nfound %s\n' "$store"
    else
        run $python folder2lmdb.py --dataset "$data/$split" -o "$store"
    fi
    run $python -m imagelmdb verify "$store"
done
run $python -m imagelmdb view "$out/val.lmdb" -o "$out/sheet.png"

# --resume auto: a run that stopped continues, and a finished run stays as it is.
run $python main.py --config configs/quickstart.yaml --train "$out/train.lmdb" --val "$out/val.lmdb" --lmdb \
    --output "$out/run" --resume auto "$@"

if ! [ -e "$out/bench.txt" ]; then
    run $python -m imagelmdb bench --folder "$data/train" --lmdb "$out/train.lmdb" --epochs 2 --batch-size 16 \
        -o "$out/bench.svg" | tee "$out/bench.partial"
    mv "$out/bench.partial" "$out/bench.txt"
fi

# The last lines: the results, and where to find them.
printf '\n%d s without the install\n\n' $((SECONDS - seconds_before))
$python -c '
import json, re, sys
from pathlib import Path

out, needs = Path(sys.argv[1]), float(sys.argv[2])
events = map(json.loads, (out / "run/log.jsonl").read_text().splitlines())
top1 = [event["val_top1"] for event in events if event["event"] == "epoch"]
bench = (out / "bench.txt").read_text()
for name, rate in re.findall(r"Timings for (.*):[\s\S]*?images/s\s+(\d+)", bench):
    print(f"{rate:>8} images/s      {name}")
print(f"{top1[-1]:8.2f} % top-1       after {len(top1)} epochs")
for name, file in {"report": "run/report.html", "contact sheet": "sheet.png"}.items():
    if (out / file).exists():
        print(f"         {name:14} {out / file}")
if top1[-1] <= needs:
    sys.exit(f"error: top-1 should be above {needs:g} %")
' "$out" "$([ "$data" = "$out/images" ] && [ $# -eq 0 ] && echo 90 || echo -1)"
