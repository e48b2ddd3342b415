"""Write and run `torch.export` files, which need PyTorch and torchvision."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ..runtimes.graph_metadata import METADATA_KEY, GraphMetadata
from .graph import torchvision_nms

NMS = torchvision_nms


def write(program: torch.export.ExportedProgram, content: str, path: Path, metadata: GraphMetadata) -> None:
    """Write a traced `program` with its `metadata`, as the JSON `content`, as an extra file."""
    torch.export.save(program, path, extra_files={METADATA_KEY: content})


def run(path: Path, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the outputs of a file's graph for its `inputs`."""
    module = torch.export.load(path).module()
    with torch.no_grad():
        return [each.numpy() for each in module(*map(torch.from_numpy, inputs))]
