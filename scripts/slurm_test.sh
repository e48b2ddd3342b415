#!/usr/bin/env bash
# Evaluate on a Slurm cluster, see slurm_train.sh:
#   scripts/slurm_test.sh gpu dpt configs/mask_rcnn_dpt_t_fpn_1x_coco.py mrcnn_dpt_t_1x.pth --tasks bbox segm
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[ $# -ge 4 ] || usage "PARTITION JOB_NAME CONFIG WEIGHTS [options of dpt-zoo evaluate]"

run_slurm_tasks "$1" "$2" evaluate "$3" --weights "$4" "${@:5}"
