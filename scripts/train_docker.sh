#!/usr/bin/env bash
# Train in the Docker image, on all GPUs. The data is mounted read-only, and runs/ in this folder gets the results.
#
#   docker build -t imagelmdb .
#   bash scripts/train_docker.sh [--image NAME] [--dry-run] OPTIONS OF main.py
#   bash scripts/train_docker.sh --config configs/rn50_90e.yaml --train /data/train-lmdb --val /data/val-lmdb --lmdb
#
#   --image NAME   the image to use (environment: IMAGE; default: imagelmdb)
#   --dry-run      print the command and stop
#
# The paths in --train, --val, --config and --resume are mounted read-only, and the folder of --output (default: runs)
# for writing. The container runs with your user id. Environment: DOCKER is the program (default: docker), such as
# podman.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}

image=${IMAGE:-imagelmdb}
docker=${DOCKER:-docker}
dry=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
            exit
            ;;
        --image)
            [ -n "${2-}" ] || fail "--image needs a name"
            image=$2
            shift
            ;;
        --dry-run) dry=1 ;;
        *) break ;;
    esac
    shift
done
command -v "$docker" >/dev/null || fail "$docker is not installed; scripts/train.sh trains without a container"

mounts=(-v "$PWD/runs:/app/runs")
folders=(runs) # Docker would make them, as root's
options=()
while [ $# -gt 0 ]; do
    name=${1%%=*}
    case $name in --train | --val | --config | --resume | --output) ;; *)
        options+=("$1")
        shift
        continue
        ;;
    esac
    if [ "$name" = "$1" ]; then
        [ $# -gt 1 ] || fail "$1 needs a value"
        value=$2
        shift
    else
        value=${1#*=}
    fi
    shift
    case $value in /*) path=$value ;; *) path=$PWD/$value ;; esac
    if [ "$name" = --output ]; then
        folders+=("$path")
        mounts+=(-v "$path:$path")
        value=$path
    elif [ -e "$value" ]; then
        mount=$path
        [ "$name" != --config ] || mount=$(dirname "$path") # a recipe may be based on its neighbour
        mounts+=(-v "$mount:$mount:ro")
        value=$path
    elif [ "$name" = --train ] || [ "$name" = --val ]; then
        fail "$name $value does not exist"
    fi
    options+=("$name" "$value")
done

gpus=()
if command -v nvidia-smi >/dev/null; then
    gpus=(--gpus all)
fi
terminal=()
if [ -t 0 ] && [ -t 1 ]; then
    terminal=(-it)
fi
command=(
    "$docker" run --rm --init ${terminal[@]+"${terminal[@]}"} ${gpus[@]+"${gpus[@]}"}
    --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 # loader workers and NCCL share memory
    --stop-timeout 120                                    # docker stop: time for a checkpoint
    --user "$(id -u):$(id -g)" "${mounts[@]}"
    "$image" ${options[@]+"${options[@]}"}
)
printf '%q ' "${command[@]}"
echo
if [ -z "$dry" ]; then
    mkdir -p "${folders[@]}"
    exec "${command[@]}"
fi
