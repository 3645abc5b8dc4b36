# One node: local.sh cfg.yaml [key=value …]
set -euo pipefail
if (($# == 0)); then
  echo "usage: $0 cfg.yaml [key=value …]" >&2
  exit 2
fi

# A mistake is said once, and ends here with status 2, which torchrun would make 1.
distopt check "$@" --nproc="$RANKS" >/dev/null

cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > RANKS ? cores / RANKS : 1))}
exec torchrun --standalone --local-addr=127.0.0.1 --nproc-per-node="$RANKS" -m distopt.train "$@"
