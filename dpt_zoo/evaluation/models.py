"""What an evaluation measures: a model of MMDetection, or an exported file."""

import contextlib
import importlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from torch import Tensor

from ..engine import config as configs
from ..engine.distributed import process_device, runner_settings
from ..engine.runner import quiet_runner, unwrapped
from ..errors import ImageError, InputError
from ..inference.detector import Detector, is_exported
from ..inference.inputs import ImageInput
from ..inference.limits import Limits
from ..models.factory import read_classes, set_num_classes
from ..utils.devices import device_name
from ..utils.environment import processor_name, versions
from ..utils.files import hash_file
from ..utils.images import load_image
from ..utils.progress import progress_bar
from ..weights.digests import tensors_sha256
from ..weights.loading import load_weights
from ..weights.store import read_trusted_weights
from .metrics import Task
from .options import EvaluationOptions
from .plan import ModelFile, Plan
from .predictions import PredictionsFile
from .result import RUNTIMES

PACKAGES = {".onnx": "onnxruntime", ".xml": "openvino"}
"""The package that runs an exported file, by its suffix."""


class EvaluatedModel(Protocol):
    """A model as an evaluation uses it.

    Attributes:
        cfg: a config whose `val_dataloader` names the data to use by default.
        tasks: everything that the model predicts.
        group_device: the device for `process_group`.
    """

    cfg: Config
    tasks: tuple[Task, ...]
    group_device: str

    @property
    def runtime(self) -> str:
        """The name and the version of what computes."""

    @property
    def device_name(self) -> str:
        """The name of the processor or the GPU."""

    def start(self, device: torch.device) -> None:
        """Check that the model can be evaluated on `device`, that of this process in its group."""

    def read(self) -> ModelFile:
        """Read the weights, and return what a plan needs to know about them."""

    def detect(self, plan: Plan) -> None:
        """Detect objects in the remaining images, and write the predictions."""


def open_model(options: EvaluationOptions) -> EvaluatedModel:
    """Return the model that the options name. Only an exported file is read."""
    return _ExportedFile(options) if is_exported(options.model) else _ConfiguredModel(options)


class _ConfiguredModel:
    """A config with weights, which MMEngine's Runner evaluates in any number of processes."""

    def __init__(self, options: EvaluationOptions) -> None:
        self.cfg = configs.load_config(options.model)
        metric = self.cfg.test_evaluator.metric
        self.tasks: tuple[Task, ...] = tuple(metric) if isinstance(metric, list | tuple) else (metric,)
        self.group_device = options.device
        if options.batch_size is not None:
            self.cfg.test_dataloader.batch_size = options.batch_size
        if options.workers is not None:
            configs.set_workers(self.cfg, options.workers)
        self.cfg.model.test_cfg = Limits(max_detections=options.max_detections).apply(self.cfg.model.test_cfg)
        self._options = options
        self._tensors: Mapping[str, Tensor] = {}

    @property
    def runtime(self) -> str:
        return f"{RUNTIMES['']} {versions()['torch']}"

    @property
    def device_name(self) -> str:
        return device_name(process_device(self._options.device))

    def start(self, device: torch.device) -> None:
        if self._options.amp:
            configs.use_amp(self.cfg, device, in_tests=True)

    def read(self) -> ModelFile:
        path, weights = read_trusted_weights(self._options.weights or self._options.model)
        self._tensors = weights.tensors
        classes = read_classes(self.cfg, weights, path)
        config = (self.cfg.model, self.cfg.test_dataloader.dataset.pipeline, self.cfg.test_cfg, classes)
        # Not the digest of the file, which changes when thresholds are written into it.
        return ModelFile(path, tensors_sha256(weights.tensors), classes, str(config))

    def detect(self, plan: Plan) -> None:
        cfg = self.cfg
        cfg.test_dataloader.sampler = {"type": "DefaultSampler", "shuffle": False, "round_up": False}
        configs.set_files(cfg.test_dataloader.dataset, plan.annotations["path"], plan.images)
        cfg.test_dataloader.dataset.update(metainfo={"classes": plan.classes}, indices=plan.remaining)
        cfg.test_evaluator = {
            "type": "PredictionsWriter",
            "folder": str(plan.folder),
            "category_ids": plan.category_ids,
        }
        configs.add_hook(cfg, type="ProgressHook")
        set_num_classes(cfg.model, len(plan.classes))
        cfg.model.backbone.init_cfg = None
        cfg.work_dir = str(plan.folder.parent / "log")
        cfg.merge_from_dict(runner_settings())
        with quiet_runner(cfg, self._options.device) as runner:
            load_weights(unwrapped(runner.model), self._tensors, Path(plan.weights["path"]), "the config")
            runner.test()


class _ExportedFile:
    """A file of `dpt_zoo.export`, which a `Detector` runs in this process."""

    group_device = "cpu"  # the file's runtime has its own devices

    def __init__(self, options: EvaluationOptions) -> None:
        for name in ("weights", "workers", "amp"):
            if getattr(options, name):
                raise InputError(f"{name} is not for an exported file: leave it out")
        if options.data_root is None and options.annotations is None:
            raise InputError(f"{options.model} names no data: choose data_root, or annotations and images")
        self.cfg = Config({"val_dataloader": {"dataset": {}}})
        self._path, self._device = Path(options.model), options.device
        self._max_detections = options.max_detections
        self._detector = Detector(
            self._path,
            score_threshold=1,
            max_detections=options.max_detections,
            device=self._device,
            batch_size=options.batch_size,
        )
        assert self._detector.metadata is not None
        self._detector.score_threshold = self._detector.metadata.lowest_score  # detect all that the graph returns
        self.tasks: tuple[Task, ...] = ("bbox", "segm") if self._detector.has_masks else ("bbox",)

    @property
    def runtime(self) -> str:
        suffix = self._path.suffix.lower()
        version: str = importlib.import_module(PACKAGES[suffix]).__version__
        return f"{RUNTIMES[suffix]} {version.partition('-')[0]}"

    @property
    def device_name(self) -> str:
        return processor_name() if self._device in ("auto", "cpu") else self._device

    def start(self, device: torch.device) -> None:
        if get_world_size() > 1:
            raise InputError(f"{self._path}: an exported file is evaluated by one process: start it without torchrun")

    def read(self) -> ModelFile:
        digest = hash_file(self._path).hexdigest()
        return ModelFile(self._path, digest, self._detector.classes, f"exported {self._max_detections}")

    def detect(self, plan: Plan) -> None:
        images: list[dict[str, Any]] = json.loads(Path(plan.annotations["path"]).read_bytes())["images"]
        images = [images[index] for index in plan.remaining]
        paths = [plan.images / image["file_name"] for image in images]
        inputs = (ImageInput(path.name, str(path), partial(load_image, path)) for path in paths)
        writer = PredictionsFile(plan.folder, plan.category_ids)
        with contextlib.closing(writer) as file, progress_bar("detecting") as progress:
            detected = zip(images, self._detector.detect_each(inputs), strict=True)
            for number, (image, (_, detections)) in enumerate(detected, 1):
                if isinstance(detections, ImageError):
                    raise detections
                file.append([(image["id"], detections)])
                progress(number, len(images))
