"""Which share of a run this process has, when torchrun or Slurm starts many of them. They do not communicate."""

import os
from collections.abc import Mapping

from ..errors import InputError


def find_rank(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the rank of this process, from 0, and the number of processes.

    Args:
        environment: the variables of torchrun (RANK, WORLD_SIZE), or of a Slurm array, of `srun`, or of `srun` in an
            array.

    Raises:
        InputError: There are none of these variables, or they contradict each other.
    """
    numbers = {name: int(value) for name, value in environment.items() if value.isdecimal()}
    if "RANK" in numbers:
        rank, world_size = numbers["RANK"], numbers.get("WORLD_SIZE", 0)
    elif numbers.keys() & {"SLURM_ARRAY_TASK_ID", "SLURM_PROCID"}:
        first, step = numbers.get("SLURM_ARRAY_TASK_MIN", 0), numbers.get("SLURM_ARRAY_TASK_STEP", 1)
        task = (numbers.get("SLURM_ARRAY_TASK_ID", first) - first) // step
        num_processes = numbers.get("SLURM_NTASKS", 1)
        rank = task * num_processes + numbers.get("SLURM_PROCID", 0)
        world_size = numbers.get("SLURM_ARRAY_TASK_COUNT", 1) * num_processes
    else:
        raise InputError(
            "runner 'rank' needs the variables of torchrun (RANK, WORLD_SIZE) or Slurm: start it with `torchrun "
            "--no-python`, `srun` or `sbatch --array`, or set them yourself"
        )
    if not 0 <= rank < world_size:
        raise InputError(f"rank {rank} of {world_size} processes is impossible: check RANK and WORLD_SIZE, or Slurm's")
    return rank, world_size


def find_local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this process among those of its machine, from 0, in torchrun's or Slurm's `environment`."""
    return int(environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or 0)
