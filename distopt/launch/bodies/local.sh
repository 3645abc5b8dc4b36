# One node: local.sh cfg.yaml [key=value …]
# PYTHON=.venv/bin/python takes a virtualenv that is not activated. PET_MAX_RESTARTS=3 starts ranks that died
# again. NUMA_BINDING=node keeps each rank on the cores beside its GPU (needs numactl).
set -euo pipefail
if (($# == 0)); then
  echo "usage: $0 cfg.yaml [key=value …]" >&2
  exit 2
fi
PYTHON=${PYTHON:-python3}
RANKS=${RANKS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 2)')}

# A mistake is said once, and ends here with status 2, which torchrun would make 1.
"$PYTHON" -m distopt check "$@" --nproc="$RANKS" >/dev/null

cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > RANKS ? cores / RANKS : 1))}
ulimit -Sn "$(ulimit -Hn)" # files: workers of loaders share tensors by them
# SIGUSR1 as well asks the ranks to save: torchrun, left alone, would die of it and take them along.
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}
exec "$PYTHON" -m torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node="$RANKS" \
  ${NUMA_BINDING:+--numa-binding="$NUMA_BINDING"} -m distopt.train "$@"
