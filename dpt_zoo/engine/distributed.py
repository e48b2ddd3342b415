"""One run in many processes: those that torchrun or Slurm started."""

import atexit
import contextlib
import functools
import gc
import itertools
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed.nn.functional  # its functions' defaults would keep the group in which it is first imported
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..errors import InputError

TIMEOUT = timedelta(hours=2)
"""For how long a process waits for another, which may be checking a large data set."""

_group_numbers = itertools.count()


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join, within the block, the processes that torchrun started; one that was started alone stays alone.

    GPUs communicate by NCCL, each process with the one of its local rank; CPUs by Gloo. A block within such a block
    does nothing. A process that leaves by an exception does not wait for the others: they are ended by torchrun.

    Raises:
        InputError: torchrun's variables are incomplete or wrong, the processes cannot meet, or there are more of them
            on this node than GPUs.
    """
    if distributed.is_initialized() or (place := _read_place()) is None:
        yield
        return
    _join(place)
    _end_threads_at_exit()
    try:
        yield
    except BaseException:
        assert distributed.group.WORLD
        distributed.group.WORLD.abort()  # or NCCL waits until the others have done their part of what was begun
        raise
    finally:
        distributed.destroy_process_group()


def runner_settings() -> dict[str, Any]:
    """Return what MMEngine's Runner needs in its config within a process group; of a process alone, nothing."""
    if not distributed.is_initialized():
        return {}
    wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False, "find_unused_parameters": False}
    if not torch.cuda.is_available():
        wrapper["device_ids"] = None  # the Runner would name a GPU
    return {"launcher": "pytorch", "model_wrapper_cfg": wrapper}


class _Place(NamedTuple):
    rank: int
    local_rank: int  # on its node
    world_size: int


def _read_place() -> _Place | None:
    """Read torchrun's variables; None if this process was started alone."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    told = {name: os.environ[name] for name in names if os.environ.get(name)}
    if told.get("WORLD_SIZE") == "1" or not told.keys() & set(names[:3]):
        return None
    if len(told) == len(names) and all(told[name].isdecimal() for name in names if name != "MASTER_ADDR"):
        place = _Place(*(int(told[name]) for name in names[:3]))
        if place.rank < place.world_size:
            return place
    found = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
    raise InputError(
        f"the environment does not tell which of several processes this is: {found}: "
        "start them by scripts/dist_train.sh or torchrun, or unset these to start one alone"
    )


def _join(place: _Place) -> None:
    device = None
    if torch.cuda.is_available():
        num_gpus = torch.cuda.device_count()
        if place.local_rank >= num_gpus:
            raise InputError(
                f"process {place.rank} would need GPU {place.local_rank}, but its node has {num_gpus}, counted from 0: "
                f"start at most {num_gpus} processes on a node"
            )
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    # Its newer name, forward_sync_buffers, is unknown to earlier versions of PyTorch.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # MMEngine sets what is not set to 1
        os.environ.setdefault(name, str(torch.get_num_threads()))
    distributed.init_process_group(
        "nccl" if device else "gloo",
        timeout=TIMEOUT,
        # Each group has a part of its own: in the last one's are addresses at which nobody answers any more.
        store=PrefixStore(str(next(_group_numbers)), _meeting_place()),
        rank=place.rank,
        world_size=place.world_size,
        device_id=device,
    )


@functools.cache
def _meeting_place() -> Store:
    """Where the processes learn one another's addresses; one for all groups, as the first process may serve it."""
    try:
        store, _, _ = next(rendezvous("env://"))
    except (distributed.DistError, ValueError) as error:  # ValueError: no port has this number
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise InputError(f"the processes cannot meet at {address}: {reason}: try another PORT=...") from error
    return store


@functools.cache
def _end_threads_at_exit() -> None:
    """Let Gloo's threads end before the interpreter does: one that frees a tensor later aborts the process.

    They live as long as anything knows their group, as a trained model does that is part of a reference cycle.
    """
    atexit.register(gc.collect)
