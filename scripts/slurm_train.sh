#!/usr/bin/env bash
# Train on a Slurm cluster. GPUS, GPUS_PER_NODE and CPUS_PER_TASK (defaults: 8, 8 and 5) set the resources:
#   GPUS=16 scripts/slurm_train.sh gpu dpt configs/mask_rcnn_dpt_t_fpn_1x_coco.py runs/1 --data-root coco
# SRUN_ARGS are more options of srun. PORT is where the processes meet; the default depends on the job id.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[ $# -ge 4 ] || usage "PARTITION JOB_NAME CONFIG WORK_DIR [options of dpt-zoo train]"

run_slurm_tasks "$1" "$2" train "$3" --work-dir "$4" "${@:5}"
