"""Process groups for torchrun and Slurm."""

import atexit
import contextlib
import functools
import gc
import itertools
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed.nn.functional  # its default arguments keep the group in which it is imported
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..errors import InputError
from ..utils.devices import find_device

_group_numbers = itertools.count()


@contextlib.contextmanager
def process_group(device: str | torch.device | None = "auto") -> Iterator[torch.device]:
    """Join the process group of torchrun or Slurm within the block, if there is one and it is not joined yet.

    GPUs communicate by NCCL, CPUs by Gloo. A process that fails does not wait for the others: torchrun ends them.

    Args:
        device: as for `find_device`; several processes accept "auto", "cuda" and "cpu".

    Yields:
        The device of this process: in a group, the GPU of its local rank or the CPU.

    Raises:
        InputError: The device is unavailable, torchrun's variables are invalid, or the processes cannot connect.
    """
    if distributed.is_initialized() or (place := _read_place()) is None:
        yield process_device(device)
        return
    _join(*place, device)
    # Gloo's threads run as long as anything refers to the group, such as a trained model in a reference cycle. They
    # must end before the interpreter does: a thread that frees a tensor later aborts the process.
    atexit.register(gc.collect)
    try:
        yield process_device()
    except BaseException:
        assert distributed.group.WORLD
        distributed.group.WORLD.abort()  # otherwise NCCL waits for the others
        raise
    finally:
        distributed.destroy_process_group()


def process_device(device: str | torch.device | None = "auto") -> torch.device:
    """Return the device of this process in its process group; `device` if there is none."""
    if not distributed.is_initialized():
        return find_device(device)
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def runner_settings() -> dict[str, Any]:
    """Return the settings for MMEngine's Runner in a process group; none for a single process."""
    if not distributed.is_initialized():
        return {}
    wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False, "find_unused_parameters": False}
    if process_device().type == "cpu":
        wrapper["device_ids"] = None  # by default, the Runner sets a GPU
    return {"launcher": "pytorch", "model_wrapper_cfg": wrapper}


def _read_place() -> tuple[int, int, int] | None:
    """Return rank, local rank and world size from torchrun's variables; None for a single process."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = {name: os.environ[name] for name in names if os.environ.get(name)}
    if values.get("WORLD_SIZE") == "1" or not values.keys() & set(names[:3]):
        return None
    if len(values) == len(names) and all(values[name].isdecimal() for name in names if name != "MASTER_ADDR"):
        rank, local_rank, world_size = (int(values[name]) for name in names[:3])
        if rank < world_size:
            return rank, local_rank, world_size
    listed = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
    raise InputError(
        f"torchrun's environment variables are incomplete or wrong: {listed}: "
        "use scripts/dist_train.sh or torchrun, or unset these variables to start a single process"
    )


def _join(rank: int, local_rank: int, world_size: int, device: str | torch.device | None) -> None:
    if device is None or str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = None
    if str(device) == "cuda":
        num_gpus = torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise InputError(
                f"process {rank} needs GPU {local_rank}, but its node has {num_gpus}, counted from 0: "
                f"start at most {num_gpus} processes on a node, or use device='cpu'"
            )
        gpu = torch.device("cuda", local_rank)
        torch.cuda.set_device(gpu)
    elif str(device) != "cpu":
        raise InputError(f"device {str(device)!r} cannot be used by several processes: choose 'auto', 'cuda' or 'cpu'")
    # Earlier versions of PyTorch do not have its new name, forward_sync_buffers.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    distributed.init_process_group(
        "nccl" if gpu else "gloo",
        timeout=timedelta(hours=2),  # another process may be checking a large data set
        # Each group has its own part of the store, since an earlier group's addresses are no longer valid.
        store=PrefixStore(str(next(_group_numbers)), _meeting_place()),
        rank=rank,
        world_size=world_size,
        device_id=gpu,
    )


@functools.cache
def _meeting_place() -> Store:
    """Return the store where processes exchange addresses. Groups share it, since the first process may serve it."""
    try:
        store, _, _ = next(rendezvous("env://"))
    except (distributed.DistError, ValueError) as error:  # ValueError: the port is out of range
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise InputError(f"the processes cannot meet at {address}: {reason}: try another PORT=...") from error
    return store
