# Several nodes without a scheduler: the same command on each of them, in any order.
#   HEAD=10.0.0.1 NNODES=4 multinode.sh cfg.yaml [key=value …]
# HEAD      address of one of the nodes, by which all reach it; PORT, by default 29400, has to be free there
# NNODES    how many nodes; 2:4 goes on with two of four, and takes in those that come (again)
# The run directory has to be on a file system that all nodes share: any of them may have rank 0.
# PYTHON, RANKS, NUMA_BINDING: as for local.sh. LOCAL_ADDR, GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME: what this node
# is reached by, where the way to HEAD is not it.
set -euo pipefail
if (($# == 0)) || [[ -z ${HEAD:-} || -z ${NNODES:-} ]]; then
  echo "usage: HEAD=address NNODES=number $0 cfg.yaml [key=value …]" >&2
  exit 2
fi
if ! [[ $NNODES =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || ((${NNODES%:*} > ${NNODES#*:})); then
  echo "NNODES: $NNODES is no number of nodes: 4, or 2:4 for two to four" >&2
  exit 2
fi
PYTHON=${PYTHON:-python3}
RANKS=${RANKS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 2)')}

# A mistake is said once, and ends here with status 2, which torchrun would make 1.
for nodes in ${NNODES/:/ }; do
  "$PYTHON" -m distopt check "$@" --nproc=$((nodes * RANKS)) >/dev/null
done

# torchrun would go by what the host's name resolves to: on many systems that is the loopback, and then nobody
# holds the rendezvous.
read -r head_address own_address < <("$PYTHON" - "$HEAD" <<'EOF'
import socket, sys
try:
    family, kind, protocol, _, address = socket.getaddrinfo(sys.argv[1], 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(address)  # sends nothing
        print(address[0], way.getsockname()[0])
except OSError as error:
    sys.exit(f"HEAD: {sys.argv[1]}: {error.strerror}")
EOF
) || exit 2
LOCAL_ADDR=${LOCAL_ADDR:-$own_address}
is_host=0
[[ $head_address == "$own_address" ]] && is_host=1
if [[ $LOCAL_ADDR == 127.* || $LOCAL_ADDR == ::1 ]]; then
  echo "HEAD: $HEAD is $LOCAL_ADDR on this node, where the others cannot reach it: give its address in their network" >&2
  exit 2
fi
if command -v ip >/dev/null; then
  interface=$(ip -o addr show to "$LOCAL_ADDR" | awk '{ print $2; exit }')
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
fi

# Nodes meet by the command that they were given: one with another config stays outside.
id=${RUN_ID:-$(printf '%s\n' "$@" | cksum | cut -d ' ' -f 1)}
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > RANKS ? cores / RANKS : 1))}
export PET_MAX_RESTARTS=${PET_MAX_RESTARTS:-3} # a node that is lost is one of these
# The torchrun of 2.11 fails where the lost node had rank 0, unless each round has a store of its own.
"$PYTHON" -c 'from importlib.metadata import version as v; exit([*map(int, v("torch").split(".")[:2])] >= [2, 13])' &&
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
ulimit -Sn "$(ulimit -Hn)" # files: workers of loaders share tensors by them
ulimit -Sl "$(ulimit -Hl)" # locked memory: InfiniBand
# SIGUSR1 as well asks the ranks to save: torchrun, left alone, would die of it and take them along.
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}
exec "$PYTHON" -m torch.distributed.run --nnodes="$NNODES" --nproc-per-node="$RANKS" \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD:${PORT:-29400}" --rdzv-id="$id" \
  --rdzv-conf="is_host=$is_host,${RDZV_CONF:-join_timeout=900}" \
  --local-addr="$LOCAL_ADDR" ${NUMA_BINDING:+--numa-binding="$NUMA_BINDING"} -m distopt.train "$@"
