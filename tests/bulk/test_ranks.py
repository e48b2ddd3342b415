"""The share of a process that torchrun or Slurm started."""

import pytest

from dpt_zoo.bulk.ranks import find_rank
from dpt_zoo.errors import InputError


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, (2, 3)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2"}, None),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "8"}, (7, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "2",
            },
            (5, 8),
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", "SLURM_PROCID": "5", "SLURM_NTASKS": "9"}, (0, 1)),
        ({"RANK": "4", "WORLD_SIZE": "4"}, None),
        ({"RANK": "0"}, None),
        ({"RANK": "x", "WORLD_SIZE": "4"}, None),
        ({}, None),
    ],
)
def test_find_rank(variables: dict[str, str], expected: tuple[int, int] | None) -> None:
    if expected:
        assert find_rank(variables) == expected
    else:
        with pytest.raises(InputError, match=r"RANK"):
            find_rank(variables)
