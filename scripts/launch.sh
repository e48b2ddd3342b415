# Sourced by dist_*.sh and slurm_*.sh: starts `dpt-zoo` in several processes, from any folder, with the Python of the
# active environment or, without one, of .venv.

root="$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python=python
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$root/.venv/bin/python" ]; then
    python="$root/.venv/bin/python"
fi

usage() {
    echo "usage: $0 $1" >&2
    exit 2
}

# run_processes NUM COMMAND...: NUM processes on this machine, or on each of NNODES nodes that run the same script.
run_processes() {
    local num="$1" cpus rendezvous=(--standalone --local-addr=localhost) # at any free port
    shift
    if [ "${NNODES:-1}" != 1 ] || [ -n "${PORT:-}" ]; then
        rendezvous=(--nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}")
        rendezvous+=(--master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}")
    fi
    if [ -z "${OMP_NUM_THREADS:-}" ]; then
        cpus="$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
        export OMP_NUM_THREADS=$((cpus > num ? cpus / num : 1))
    fi
    exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node="$num" -m dpt_zoo "$@"
}

# run_slurm_tasks PARTITION JOB_NAME COMMAND...: GPUS processes, one for each Slurm task.
run_slurm_tasks() {
    local partition="$1" job_name="$2" gpus_per_node="${GPUS_PER_NODE:-8}" cpus_per_task="${CPUS_PER_TASK:-5}"
    shift 2
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus_per_task}"
    # In each task, Slurm's variables become torchrun's. Jobs that share a node get ports of their own.
    # shellcheck disable=SC2016,SC2086
    exec srun -p "$partition" --job-name="$job_name" --gres="gpu:$gpus_per_node" --ntasks="${GPUS:-8}" \
        --ntasks-per-node="$gpus_per_node" --cpus-per-task="$cpus_per_task" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        bash -c '
            export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
            export MASTER_ADDR="$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)"
            export MASTER_PORT="${PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
            exec "$@"' task "$python" -u -m dpt_zoo "$@"
}
