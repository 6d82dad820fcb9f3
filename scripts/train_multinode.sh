#!/usr/bin/env bash
# Train on many machines. Run the same command on each; they find each other through the first one (torchrun, c10d).
#
#   HOSTS=node1,node2 bash scripts/train_multinode.sh [OPTIONS] OPTIONS OF main.py
#   bash scripts/train_multinode.sh --hosts node1,node2 --config configs/rn50_90e.yaml --train T --val V --lmdb
#
#   --hosts A,B,...      all hosts, in the same order everywhere; they meet at the first one (HOSTS)
#   --master-addr ADDR   instead of --hosts, with --nnodes: the host where they meet (MASTER_ADDR)
#   --nnodes N           the number of hosts (NNODES)
#   --node-rank N        the number of this host, 0 at ADDR; only if the network translates addresses (NODE_RANK)
#   --port PORT          the port where they meet (MASTER_PORT; default: 29400)
#   --nproc N            the number of ranks on this host (default: its number of GPUs, or 1)
#   --max-restarts N     how often to start all ranks again after one has died (MAX_RESTARTS; default: 0)
#   --wait SECONDS       how long to wait for the other hosts (default: 600)
#   --dry-run            print the command and stop
#
# All hosts must share the run's folder (--output). The script adds --resume auto, so a restart, or the same command
# run again, continues from the last checkpoint. Your own --resume replaces it.
# If a host has several networks, set NCCL_SOCKET_IFNAME (GPUs) or GLOO_SOCKET_IFNAME (CPUs) to the interface.
# Environment: the names in brackets, and PYTHON. Exit codes: see imagelmdb/errors.py.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}

root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
python=${PYTHON:-$python}

hosts=${HOSTS-}
master=${MASTER_ADDR-}
nnodes=${NNODES-}
node_rank=${NODE_RANK:-${SLURM_NODEID-}}
port=${MASTER_PORT:-29400}
restarts=${MAX_RESTARTS:-0}
wait=600
nproc=()
dry=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
            exit
            ;;
        --dry-run)
            dry=1
            shift
            continue
            ;;
        --hosts | --master-addr | --nnodes | --node-rank | --port | --nproc | --max-restarts | --wait) ;;
        *) break ;;
    esac
    [ -n "${2-}" ] || fail "$1 needs a value"
    case $1 in
        --hosts) hosts=$2 master="" nnodes="" ;;
        --master-addr) master=$2 ;;
        --nnodes) nnodes=$2 ;;
        --node-rank) node_rank=$2 ;;
        --port) port=$2 ;;
        --nproc) nproc=(--nproc-per-node "$2") ;;
        --max-restarts) restarts=$2 ;;
        --wait) wait=$2 ;;
    esac
    shift 2
done

if [ -n "$hosts" ]; then
    read -ra names <<<"${hosts//,/ }"
    master=${master:-${names[0]}}
    nnodes=${nnodes:-${#names[@]}}
fi
[ -n "$master" ] && [ -n "$nnodes" ] || fail "say which hosts: --hosts A,B, or --master-addr A --nnodes 2"

# Find the address from which this host reaches the first one. The other hosts can reach it there (--local-addr), and
# unlike its name the address needs no DNS. If it is the first host's own address, this host is the first one.
found=$("$python" -c '
import socket, sys
try:
    kind, _, _, _, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
    probe = socket.socket(kind, socket.SOCK_DGRAM)
    probe.connect(address)
    print(address[0], probe.getsockname()[0])
except (OSError, OverflowError, ValueError) as error:
    sys.exit(f"error: {sys.argv[1]}:{sys.argv[2]} cannot be reached from here: {error}")
' "$master" "$port") || exit 2
read -r meeting mine <<<"$found"
is_host=0
case $mine in "$meeting" | 127.* | ::1) is_host=1 ;; esac
if [ -n "$node_rank" ]; then
    is_host=$((node_rank == 0))
fi
local_addr=()
case $mine in 127.* | ::1) ;; *) local_addr=(--local-addr "$mine") ;; esac

command=(
    "$python" "$root/scripts/torchrun.py"
    --nnodes "$nnodes" ${nproc[@]+"${nproc[@]}"} --max-restarts "$restarts"
    --rdzv-backend c10d --rdzv-endpoint "$master:$port" --rdzv-id imagelmdb
    --rdzv-conf "is_host=$is_host,join_timeout=$wait,read_timeout=$wait"
    ${local_addr[@]+"${local_addr[@]}"}
    "$root/main.py" --resume auto "$@"
)
printf '%q ' "${command[@]}"
echo
[ -n "$dry" ] || exec "${command[@]}"
