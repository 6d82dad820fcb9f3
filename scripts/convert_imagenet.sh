#!/usr/bin/env bash
# Convert ImageNet's three official files to two verified stores, OUT/train-lmdb and OUT/val-lmdb, without
# extracting anything.
#
#   bash scripts/convert_imagenet.sh TRAIN.tar VAL.tar DEVKIT.tar.gz OUT [OPTIONS OF folder2lmdb.py]
#   bash scripts/convert_imagenet.sh ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar \
#       ILSVRC2012_devkit_t12.tar.gz /data/imagenet
#
#   --no-md5           do not check the md5 sums of the files
#   --train-count N    expect N training images (default: 1281167)
#   --val-count N      expect N validation images (default: 50000)
#   --classes N        expect N classes (default: 1000)
#
# These options go before TRAIN.tar. Options after OUT, such as --workers 16 or --max-size 500 --quality 90, go to
# folder2lmdb.py and apply to both stores. If the script is stopped, the same command continues where it was.
# OUT/checked.txt lists the checks that passed.
# Environment: PYTHON is the interpreter (default: .venv/bin/python if it exists, otherwise python3).
# Exit codes: 0 both stores are verified, 1 a check failed, 2 wrong usage, 3 some images are damaged, 4 disk full.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit "${code:-2}"
}

root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
python=${PYTHON:-$python}

md5=1
train_count=1281167
val_count=50000
classes=1000
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
            exit
            ;;
        --no-md5)
            md5=
            shift
            continue
            ;;
        --train-count | --val-count | --classes) ;;
        -*) fail "unknown option $1; options of folder2lmdb.py go after OUT" ;;
        *) break ;;
    esac
    [[ ${2-} =~ ^[1-9][0-9]*$ ]] || fail "$1 ${2-}: give a positive number"
    case $1 in
        --train-count) train_count=$2 ;;
        --val-count) val_count=$2 ;;
        --classes) classes=$2 ;;
    esac
    shift 2
done
[ $# -ge 4 ] || fail "give TRAIN.tar VAL.tar DEVKIT.tar.gz OUT; --help explains them"
train=$1
val=$2
devkit=$3
out=$4
shift 4
for file in "$train" "$val" "$devkit"; do
    [ -r "$file" ] && [ -f "$file" ] || fail "$file does not exist or cannot be read"
done
mkdir -p "$out" || fail "cannot write $out"
checked=$out/checked.txt

run() {
    printf '%q ' "$@"
    echo
    "$@"
}

# once NOTE CHECK...: run the check, unless checked.txt says that it passed before.
once() {
    if grep -qsxF "$1" "$checked"; then
        echo "passed before: $1"
        return
    fi
    "${@:2}"
    echo "$1" >>"$checked"
}

check_md5() { # FILE SUM
    local note
    note=$("$python" -c 'import os, sys; s = os.stat(sys.argv[1]); print(s.st_size, s.st_mtime_ns)' "$1")
    once "md5 $2 $note $1" compare_md5 "$1" "$2"
}

compare_md5() {
    local found
    echo "md5 of $1 ($(du -hL "$1" | cut -f1))"
    if command -v md5sum >/dev/null; then
        found=$(md5sum <"$1")
    else
        found=$(md5 -q "$1")
    fi
    [ "${found%% *}" = "$2" ] || code=1 fail "$1 has the md5 sum ${found%% *}, not $2: download it again (or --no-md5)"
}

# Set complete, images, labels and digest from `imagelmdb info`. They are empty if there is no complete store.
describe() {
    complete="" images="" labels="" digest=""
    read -r complete images labels digest <<<"$("$python" -c '
import json, subprocess, sys
info = subprocess.run([sys.executable, "-m", "imagelmdb", "info", "--json", sys.argv[1]], capture_output=True)
facts = json.loads(info.stdout) if info.returncode == 0 else {}
if facts.get("complete"):
    print("yes", facts["count"], len(facts["classes"]), facts["digest"])
' "$1")" || true
}

make_store() { # STORE COUNT OPTIONS OF folder2lmdb.py
    local store=$1 count=$2
    shift 2
    describe "$store"
    if [ -n "$complete" ]; then
        echo "found $store"
    else
        run "$python" "$root/folder2lmdb.py" -o "$store" "$@"
        describe "$store"
    fi
    [ "$images" = "$count" ] || code=1 fail "$store has $images images, not $count"
    [ "$labels" = "$classes" ] || code=1 fail "$store has $labels classes, not $classes"
    once "verified $digest $store" run "$python" -m imagelmdb verify "$store"
}

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [ -n "$md5" ]; then
    check_md5 "$devkit" fa75699e90414af021442c21a62c3abf
    check_md5 "$val" 29b22e2961454d5413ddabcf34fc5622
    check_md5 "$train" 1d675b47d978889d74fa0da5fadfb00e
fi
# The small store first: a mistake then shows within minutes.
make_store "$out/val-lmdb" "$val_count" --dataset "$val" --devkit "$devkit" "$@"
make_store "$out/train-lmdb" "$train_count" --dataset "$train" "$@"
echo "train with: --train $out/train-lmdb --val $out/val-lmdb --lmdb"
