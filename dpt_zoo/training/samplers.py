"""The order of training images in MMDetection 2.8, which the authors used."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS
from numpy.typing import NDArray
from torch.utils.data import BatchSampler


@DATA_SAMPLERS.register_module()
class GroupBatchSampler(BatchSampler):
    """Batches in the order of MMDetection 2.8's `DistributedGroupSampler`: no batch mixes wide images with others.

    In each epoch, both groups are shuffled, then padded by repeating their first images until every process gets the
    same number of full batches. Then all batches are shuffled, and each process takes a contiguous share of them.

    Args:
        sampler: MMEngine's `DefaultSampler`, which has the data set, seed, epoch, rank and number of processes.
        batch_size: number of images in a batch of one process.
    """

    sampler: Any

    def __init__(self, sampler: Any, batch_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        infos = (sampler.dataset.get_data_info(index) for index in range(len(sampler.dataset)))
        is_wide = np.array([info["width"] > info["height"] for info in infos], dtype=bool)
        self._groups = np.flatnonzero(~is_wide), np.flatnonzero(is_wide)

    def __len__(self) -> int:
        return sum(self._num_batches(group) for group in self._groups)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.sampler.seed + self.sampler.epoch)
        batches = []  # of all processes
        for group in self._groups:
            shuffled = group[torch.randperm(len(group), generator=generator).numpy()]
            shape = self._num_batches(group) * self.sampler.world_size, self.batch_size
            batches.append(np.resize(shuffled, shape))  # repeats the first images if there are too few
        order = torch.randperm(self.sampler.world_size * len(self), generator=generator).numpy()
        first = self.sampler.rank * len(self)
        yield from np.concatenate(batches)[order][first : first + len(self)].tolist()

    def _num_batches(self, group: NDArray[np.int64]) -> int:
        """Return the number of batches that each process gets from a group."""
        return math.ceil(len(group) / (self.batch_size * self.sampler.world_size))
