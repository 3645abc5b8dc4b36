# Slurm: sbatch train.sbatch cfg.yaml [key=value …]; docs/slurm.md has what is beside this.
# GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME and NCCL_IB_HCA choose networks; NUMA_BINDING=node keeps each rank on the
# cores beside its GPU (needs numactl); PYTHON is python3, or that of a virtualenv that is not activated.
set -euo pipefail
if (($# == 0)); then
  echo "usage: sbatch train.sbatch cfg.yaml [key=value …]" >&2
  exit 2
fi
export PYTHON=${PYTHON:-python3}
read -ra container <<<"${CONTAINER:-}"

# A mistake is said once, and ends here with status 2, which torchrun would make 1.
"${container[@]}" "$PYTHON" -m distopt check "$@" --nproc=$((RANKS * SLURM_NNODES)) >/dev/null

# The number of an array stands for all of its tasks, and is the number of one of them too.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
launch=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}

decide() { # before|after|preempted cfg.yaml [key=value …]: sets verdict and work_dir
  local answer moment=$1
  answer=$("${container[@]}" "$PYTHON" -m distopt.launch.requeue "$moment" "$launch" "$REQUEUES" "${@:2}")
  verdict=${answer%% *} work_dir=${answer#* }
}

decide before "$@"
case $verdict in
done) echo "$work_dir: finished, nothing to do" && exit ;;
stop) exit 1 ;;
esac

# shellcheck disable=SC2329 # srun calls it
node() { # on each node, with the options that are the same on all
  local cores is_host=0
  cores=$(nproc)
  [[ $SLURMD_NODENAME == "$HEAD_NODE" ]] && is_host=1
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > RANKS ? cores / RANKS : 1))}
  ulimit -Sn "$(ulimit -Hn)" # files: workers of loaders share tensors by them
  ulimit -Sl "$(ulimit -Hl)" # locked memory: InfiniBand
  trap '' USR1               # meant for the ranks, which save: torchrun would die of it
  exec "$PYTHON" -m torch.distributed.run --rdzv-conf="is_host=$is_host,join_timeout=900" \
    --local-addr="$(hostname)" --log-dir="$LOGS/$SLURMD_NODENAME" --tee=3 \
    ${NUMA_BINDING:+--numa-binding="$NUMA_BINDING"} "$@"
}

# Not by head, which ends before a long list does: scontrol would die of it, and the job with it.
read -r HEAD_NODE < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
LOGS=$work_dir/logs/$launch
mkdir -p "$LOGS"
export HEAD_NODE LOGS
export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE="[r\${rank}] "
# What NCCL was doing when it failed or timed out: one file a rank.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000} TORCH_FR_DUMP_TEMP_FILE=$work_dir/logs/nccl_rank
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

status=0
srun --export=ALL --kill-on-bad-exit=0 --wait=60 "${container[@]}" bash -c "$(declare -f node); node \"\$@\"" node \
  --nnodes="$SLURM_NNODES" --nproc-per-node="$RANKS" --rdzv-backend=c10d --rdzv-id="$launch" \
  --rdzv-endpoint="$HEAD_NODE:$((20000 + SLURM_JOB_ID % 10000))" -m distopt.train "$@" || status=$?

# Ranks that are preempted before they train leave no word of it.
moment=after
[[ $(scontrol --oneliner show job "$job") =~ PreemptTime=[0-9] ]] && moment=preempted
decide "$moment" "$@"
case $verdict in
done) exit 0 ;;
requeue) scontrol requeue "$job" && sleep 60 ;; # which ends this script
esac
exit $((status ? status : 1))
