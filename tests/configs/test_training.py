"""Over the whole schedule, a config trains as the authors' tool does."""

import math
import signal
import uuid
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook, ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from numpy.typing import NDArray
from PIL import Image
from reference_data import ROOT, read_json
from small_data import BOX, HEIGHT, WIDTH, Json, coco_annotation, make_coco
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dpt_zoo
from dpt_zoo.manifest.records import get_detector_info
from dpt_zoo.models.factory import build_detector
from dpt_zoo.training.loop import SeededDataset, TrainingInterrupted

SINGLE_SCALE = ["retinanet_dpt_t_fpn_1x_coco", "mask_rcnn_dpt_t_fpn_1x_coco"]
MULTI_SCALE = ["retinanet_dpt_t_fpn_mstrain_3x_coco", "mask_rcnn_dpt_t_fpn_mstrain-poly_3x_coco"]
"""The configs of the other sizes differ only in the backbone's size: see test_configs.py."""

SEED = 3


def config_of(name: str, folder: Path) -> Config:
    """A config, with the data in a folder."""
    settings = Config.fromfile(ROOT / "configs" / f"{name}.py").to_dict()
    cfg = Config(settings, format_python_code=False)  # it would at each checkpoint, which takes long
    init_default_scope(cfg.default_scope)  # as the Runner does
    cfg.train_dataloader.dataset.data_root = str(folder)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    return cfg


# --- The whole schedule


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_images", "stopped_at"),
    [
        ("retinanet_dpt_t_fpn_1x_coco", 101, None),
        ("mask_rcnn_dpt_t_fpn_1x_coco", 101, 130),  # in the warm-up, and in the middle of an epoch
        ("mask_rcnn_dpt_t_fpn_mstrain-poly_3x_coco", 41, 600),
    ],
)
def test_every_iteration_has_the_authors_learning_rate_and_images(
    name: str, num_images: int, stopped_at: int | None, tmp_path: Path
) -> None:
    is_wide = [index % 5 < 3 for index in range(num_images)]
    make_images(tmp_path, is_wide)
    diary = Diary(stopped_at)
    if stopped_at is not None:
        with pytest.raises(TrainingInterrupted):
            small_runner(config_of(name, tmp_path), tmp_path / "runs", diary).train()
        assert len(diary.rates) == stopped_at + 1
    small_runner(config_of(name, tmp_path), tmp_path / "runs", diary, resume=stopped_at is not None).train()

    authors = read_json("configs.json")[name]
    epochs = [
        authors_batches(is_wide, authors["data"]["samples_per_gpu"], 1, SEED + epoch)[0]
        for epoch in range(authors["total_epochs"])
    ]
    assert diary.batches == [*chain(*epochs)]
    assert diary.rates == pytest.approx(authors_learning_rates(authors, len(epochs[0])), rel=1e-12)


class Diary(Hook):  # type: ignore[misc]
    """Records the input of each iteration, and stops the run in one of them."""

    def __init__(self, stopped_at: int | None = None) -> None:
        self.stopped_at = stopped_at
        self.rates: list[float] = []
        self.batches: list[list[int]] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.rates.append(learning_rate(runner))
        self.batches.append([sample.img_id for sample in data_batch["data_samples"]])
        if runner.iter == self.stopped_at:
            runner.train_loop.stop.received = signal.SIGTERM


@MODELS.register_module()
class OneWeight(BaseModel):  # type: ignore[misc]
    """A model that trains in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, data_samples: list[Any], mode: str) -> dict[str, Tensor]:
        return {"loss": self.weight.square()}


def small_runner(cfg: Config, work_dir: Path, diary: Diary, resume: bool = False) -> Runner:
    """A config's Runner, with a small model, images that are not read, and no validation."""
    cfg.model = {"type": "OneWeight"}
    cfg.train_dataloader.dataset.pipeline = [{"type": "PackDetInputs"}]
    for split in ("val", "test"):
        cfg.update({f"{split}_{part}": None for part in ("dataloader", "cfg", "evaluator")})
    name = uuid.uuid4().hex  # with an earlier run's name, MMEngine would reuse its log and visualizer
    cfg.update(work_dir=str(work_dir), resume=resume, experiment_name=name, log_level="ERROR")
    cfg.visualizer.name = name
    cfg.randomness = {"seed": SEED}
    runner = Runner.from_cfg(cfg)
    runner.register_hook(diary)
    return runner


def make_images(folder: Path, is_wide: list[bool]) -> None:
    """Write an annotation file of wide and other images, some of which are square; ids are indices."""
    sizes = [(64, 48) if wide else (48, 48 + index % 2) for index, wide in enumerate(is_wide)]
    images = [
        {"id": index, "file_name": f"{index}.png", "width": width, "height": height}
        for index, (width, height) in enumerate(sizes)
    ]
    annotations = [coco_annotation(index + 1, index) for index in range(len(is_wide))]
    make_coco(folder, lambda content: content.update(images=images, annotations=annotations))


# --- The learning rate

ITERATIONS_PER_EPOCH = 7330  # COCO train2017 on 8 GPUs with 2 images each


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_dpt_t_fpn_1x_coco", "mask_rcnn_dpt_t_fpn_mstrain-poly_3x_coco"])
def test_learning_rate_of_every_iteration_on_coco(name: str, tmp_path: Path) -> None:
    authors = read_json("configs.json")[name]
    make_images(tmp_path, [True])
    runner = small_runner(config_of(name, tmp_path), tmp_path / "runs", Diary())
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, ParamSchedulerHook))
    runner.optim_wrapper.step()
    rates = []
    for _ in range(authors["total_epochs"]):
        for number in range(ITERATIONS_PER_EPOCH):
            rates.append(learning_rate(runner))
            hook.after_train_iter(runner, number)
        hook.after_train_epoch(runner)
    expected = authors_learning_rates(authors, ITERATIONS_PER_EPOCH)
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=0)


def learning_rate(runner: Runner) -> float:
    (group,) = runner.optim_wrapper.optimizer.param_groups
    return group["lr"]


def authors_learning_rates(authors: Json, epoch_length: int) -> NDArray[np.float64]:
    """The learning rates that the authors' tool, MMCV 1.2.7, sets before each iteration."""
    lr_config = authors["lr_config"]
    iteration = np.arange(authors["total_epochs"] * epoch_length)
    steps_taken = np.sum([iteration // epoch_length >= step for step in lr_config["step"]], axis=0)
    warmth = np.minimum(iteration / lr_config["warmup_iters"], 1)
    factors: NDArray[np.float64] = 0.1**steps_taken * (1 - (1 - warmth) * (1 - lr_config["warmup_ratio"]))
    return authors["optimizer"]["lr"] * factors


# --- The optimizer


@pytest.mark.parametrize("name", dpt_zoo.list_models("*_1x"))
def test_every_parameter_is_in_the_one_group_that_decays(name: str, tmp_path: Path) -> None:
    """MMCV's AdamW without `paramwise_cfg`: norms, biases and position embeddings decay too."""
    checkpoint = get_detector_info(name)
    runner = small_runner(config_of(checkpoint.config_path.stem, tmp_path), tmp_path, Diary())
    with torch.device("meta"):  # shapes without numbers
        runner.model = build_detector(Config.fromfile(checkpoint.config_path), checkpoint.num_classes)
    optimizer = runner.build_optim_wrapper(runner.optim_wrapper).optimizer
    (group,) = optimizer.param_groups
    names = {id(parameter): name for name, parameter in runner.model.named_parameters() if parameter.requires_grad}
    schema = read_json(f"schema_{checkpoint.architecture}_dpt_{checkpoint.size[0]}.json")
    assert [names[id(parameter)] for parameter in group["params"]] == schema["parameters"]

    authors = read_json("configs.json")[checkpoint.config_path.stem]["optimizer"]
    assert type(optimizer).__name__ == authors.pop("type")
    defaults_of_torch_171 = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}
    assert group.items() >= (authors | defaults_of_torch_171).items()


# --- The order of the images


def test_order_is_as_recorded(tmp_path: Path) -> None:
    """The batches of MMDetection 2.8.0's own `DistributedGroupSampler`, with a current PyTorch."""
    is_wide = [True, False, True, True, False, True, False, True, True]
    loader = loader_of(tmp_path, is_wide, batch_size=2, seed=0)
    assert batches_of(loader, processes=2, epoch=0) == [[[4, 6], [0, 5], [8, 2]], [[8, 2], [3, 7], [6, 1]]]
    assert batches_of(loader, processes=2, epoch=1) == [[[0, 7], [4, 6], [0, 7]], [[1, 4], [8, 2], [3, 5]]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_wide", "num_others", "batch_size", "processes"),
    [
        (75, 26, 2, 8),
        (32, 16, 2, 8),  # nothing is filled up
        (31, 18, 2, 1),
        (31, 18, 1, 4),
        (21, 0, 2, 3),  # one kind alone
        (0, 21, 3, 2),
        (1, 3, 4, 2),  # fewer than are filled up
    ],
)
def test_order_over_epochs(num_wide: int, num_others: int, batch_size: int, processes: int, tmp_path: Path) -> None:
    is_wide = np.random.RandomState(0).permutation([True] * num_wide + [False] * num_others).tolist()
    loader = loader_of(tmp_path, is_wide, batch_size, SEED)
    epochs = [batches_of(loader, processes, epoch) for epoch in range(5)]
    assert epochs == [authors_batches(is_wide, batch_size, processes, SEED + epoch) for epoch in range(5)]
    step = batch_size * processes
    for epoch in epochs:
        assert {len(share) for share in epoch} == {len(loader)}
        batches = [*chain(*epoch)]
        assert {len(batch) for batch in batches} == {batch_size}
        assert all(len({is_wide[index] for index in batch}) == 1 for batch in batches)
        times = Counter(chain(*batches))
        for kind, size in ((True, num_wide), (False, num_others)):
            seen = [times[index] for index, wide in enumerate(is_wide) if wide == kind]
            assert sum(seen) == math.ceil(size / step) * step
            assert max(seen, default=0) - min(seen, default=0) <= 1
    assert epochs[0] != epochs[1]


def loader_of(folder: Path, is_wide: list[bool], batch_size: int, seed: int) -> DataLoader[Any]:
    """Data as the Runner loads them from a config."""
    make_images(folder, is_wide)
    cfg = config_of("retinanet_dpt_t_fpn_1x_coco", folder)
    cfg.train_dataloader.batch_size = batch_size
    return Runner.build_dataloader(cfg.train_dataloader, seed=seed)


def batches_of(loader: Any, processes: int, epoch: int) -> list[list[list[int]]]:
    """The batches of each process."""
    sampler = loader.batch_sampler.sampler
    sampler.world_size = processes
    sampler.set_epoch(epoch)
    shares = []
    for rank in range(processes):
        sampler.rank = rank
        shares.append(list(loader.batch_sampler))
    return shares


def authors_batches(is_wide: list[bool], batch_size: int, processes: int, seed: int) -> list[list[list[int]]]:
    """The rule of MMDetection 2.8.0's `DistributedGroupSampler`, step by step; its seed was the epoch."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    batches = []
    for kind in (False, True):
        members = [index for index, wide in enumerate(is_wide) if wide == kind]
        shuffled = [members[place] for place in torch.randperm(len(members), generator=generator)]
        filled_up = list(shuffled)
        while len(filled_up) % (batch_size * processes):
            filled_up.append(shuffled[len(filled_up) % len(shuffled)])
        while filled_up:
            batches.append(filled_up[:batch_size])
            del filled_up[:batch_size]
    batches = [batches[place] for place in torch.randperm(len(batches), generator=generator)]
    share = len(batches) // processes
    return [batches[rank * share : (rank + 1) * share] for rank in range(processes)]


# --- Scales and flips

SIZES = {short: (short, round(short * WIDTH / HEIGHT)) for short in (640, 672, 704, 736, 768, 800)}
NUM_EPOCHS = 30

# 99.9% of what is drawn evenly has a lower chi-square: by the number of choices.
CHI_SQUARE = {2: 10.83, 12: 31.26}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a white box as the object."""
    folder = tmp_path_factory.mktemp("drawn")
    x1, y1, x2, y2 = map(int, BOX)
    outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    box: Json = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "segmentation": outline}
    annotations = [coco_annotation(number, number, **box) for number in (1, 2, 3, 4)]
    make_coco(folder, lambda content: content.update(annotations=annotations))
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    for path in (folder / "train2017").iterdir():
        Image.fromarray(pixels).save(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE_SCALE + MULTI_SCALE)
def test_scales_and_flips(name: str, drawn: Path) -> None:
    dataset = SeededDataset(DATASETS.build(config_of(name, drawn).train_dataloader.dataset))
    sizes = list(SIZES.values()) if name in MULTI_SCALE else [SIZES[800]]
    choices = np.zeros((NUM_EPOCHS, len(dataset)), int)
    for epoch, index in np.ndindex(*choices.shape):
        sample = dataset[SEED, epoch, index]
        size, flip = sample["data_samples"].img_shape, sample["data_samples"].flip
        choices[epoch, index] = 2 * sizes.index(size) + flip
        expected = BOX if not flip else [WIDTH - BOX[2], BOX[1], WIDTH - BOX[0], BOX[3]]
        scale = np.array([size[1] / WIDTH, size[0] / HEIGHT] * 2)
        for found in places_of_the_object(sample):
            assert found == pytest.approx(expected * scale, abs=1)

    num_choices = 2 * len(sizes)
    counts = np.bincount(choices.flatten(), minlength=num_choices)
    expected_count = choices.size / num_choices
    assert ((counts - expected_count) ** 2 / expected_count).sum() < CHI_SQUARE[num_choices]
    assert any(len(set(of_an_epoch)) > 1 for of_an_epoch in choices.tolist())  # each image has its own


def places_of_the_object(sample: Any) -> list[list[float]]:
    """The object's box, xyxy in pixels, from the image, from its annotation, and from its mask if there is one."""
    rows, columns = np.nonzero(sample["inputs"][0].numpy() > 127)
    objects = sample["data_samples"].gt_instances
    places = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], objects.bboxes.tensor[0].tolist()]
    if "masks" in objects:
        places += objects.masks.get_bboxes("hbox").tensor.tolist()
    return places


# --- What is left out


@pytest.mark.parametrize("name", SINGLE_SCALE + MULTI_SCALE)
def test_images(name: str, tmp_path: Path) -> None:
    """Images without annotations of the classes and small images are dropped; a crowd or ignored object is enough."""
    size = {"width": 64, "height": 48}
    images = {
        "empty": size,
        "an object": size,
        "too low": {"width": 64, "height": 31},
        "too narrow": {"width": 31, "height": 64},
        "just large enough": {"width": 32, "height": 32},
        "a crowd": size,
        "to be ignored": size,
        "of an unknown class": size,
    }
    changes: dict[str, Json] = {
        "a crowd": {"iscrowd": 1},
        "to be ignored": {"ignore": 1},
        "of an unknown class": {"category_id": 9},
    }

    def change(content: Json) -> None:
        content["categories"].append({"id": 9, "name": "gnu"})
        content["images"] = [
            {"id": number, "file_name": f"{name}.png", **image} for number, (name, image) in enumerate(images.items())
        ]
        content["annotations"] = [
            coco_annotation(number, number, **changes.get(name, {}))
            for number, name in enumerate(images)
            if name != "empty"
        ]

    make_coco(tmp_path, change)
    dataset = DATASETS.build(config_of(name, tmp_path).train_dataloader.dataset)
    kept = [Path(dataset.get_data_info(index)["img_path"]).stem for index in range(len(dataset))]
    assert kept == ["an object", "just large enough", "a crowd", "to be ignored"]


@pytest.mark.parametrize("name", SINGLE_SCALE + MULTI_SCALE)
def test_annotations(name: str, tmp_path: Path) -> None:
    """Crowds are passed on separately, unlike in 2.8, which has no effect with `ignore_iof_thr=-1`."""
    changes: dict[str, Json] = {
        "an object": {},
        "partly outside": {"bbox": [-20, -20, 30, 30]},
        "a crowd": {"bbox": [1, 1, 50, 40], "iscrowd": 1},
        "to be ignored": {"ignore": 1},
        "outside": {"bbox": [-40, 0, 40, 10]},
        "without area": {"area": 0},
        "too thin": {"bbox": [5, 5, 0.9, 20]},
        "too flat": {"bbox": [5, 5, 20, 0.9]},
        "of an unknown class": {"category_id": 9},
        "another object": {"bbox": [7, 7, 10, 10], "category_id": 2},
    }
    annotations = [coco_annotation(number, 1, **change) for number, change in enumerate(changes.values(), 1)]
    make_coco(tmp_path, lambda content: content.update(annotations=annotations))
    cfg = config_of(name, tmp_path)
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [
        step for step in pipeline if "Random" not in step.type and step.type != "Resize"
    ]
    (sample,) = DATASETS.build(cfg.train_dataloader.dataset)
    objects, crowds = sample["data_samples"].gt_instances, sample["data_samples"].ignored_instances
    assert objects.bboxes.tensor.tolist() == [[10, 8, 50, 40], [-20, -20, 10, 10], [7, 7, 17, 17]]
    assert objects.labels.tolist() == [0, 0, 1]
    assert crowds.bboxes.tensor.tolist() == [[1, 1, 51, 41]]
    if "masks" in objects:
        assert len(objects.masks) == 3
