"""The twelve configs are equivalent to the authors' configs.

The authors' configs, as their own tool (MMDetection 2.8) resolves them, are rewritten here for MMDetection 3.
Each rule *takes* the settings that it explains; what no rule takes is an error. The rewritten config, with
short lists of what the authors did not have to say, must be the whole of ours: nothing lost, nothing added.
"""

import ast
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mmengine.config import Config
from reference_data import ROOT, read_json

Settings = dict[str, Any]

AUTHORS: dict[str, Settings] = read_json("configs.json")

every_config = pytest.mark.parametrize("name", AUTHORS)


@cache
def our_config(name: str) -> Settings:
    """Return our config, resolved."""
    path = ROOT / "configs" / f"{name}.py"
    settings: Settings = Config.fromfile(path, import_custom_modules=False).to_dict()
    return settings


@every_config
def test_config_is_the_authors(name: str) -> None:
    detector = AUTHORS[name]["model"]["type"]
    expected = merged(translated(AUTHORS[name]), ONCE_UNSAID, ONCE_UNSAID_OF[detector], NEW)
    assert tuples_as_lists(our_config(name)) == expected


# What MMDetection 2.8 did by itself, and MMDetection 3 does only on request.
ONCE_UNSAID: Settings = {
    "train_dataloader": {
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "batch_sampler": {"type": "GroupBatchSampler"},
        "dataset": {"filter_cfg": {"filter_empty_gt": True, "min_size": 32}},
    },
    **{
        f"{split}_dataloader": {
            "batch_size": 1,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": {"test_mode": True},
        }
        for split in ("val", "test")
    },
    "env_cfg": {"cudnn_benchmark": False},
}
ONCE_UNSAID_OF: dict[str, Settings] = {
    "RetinaNet": {"model": {"train_cfg": {"sampler": {"type": "PseudoSampler"}}}},
    "MaskRCNN": {},
}

# What the authors did not have; none of it changes what is computed.
NEW: Settings = {
    "custom_imports": {
        "imports": ["dpt_zoo.models.detection", "dpt_zoo.training.samplers", "dpt_zoo.training.checkpoints"],
        "allow_failed_imports": False,
    },
    "default_scope": "mmdet",
    "default_hooks": {
        "checkpoint": {"save_best": "coco/bbox_mAP"},
        "timer": {"type": "IterTimerHook"},
        "param_scheduler": {"type": "ParamSchedulerHook"},
        "sampler_seed": {"type": "DistSamplerSeedHook"},
        "visualization": {"type": "DetVisualizationHook"},
    },
    "log_processor": {"type": "LogProcessor", "by_epoch": True},
    "visualizer": {
        "type": "DetLocalVisualizer",
        "name": "visualizer",
        "vis_backends": [{"type": "LocalVisBackend"}],
    },
    "auto_scale_lr": {"enable": False, "base_batch_size": 16},
    "optim_wrapper": {"type": "OptimWrapper"},
    "val_cfg": {"type": "ValLoop"},
    "test_cfg": {"type": "TestLoop"},
    "train_dataloader": {"persistent_workers": True},
    "val_dataloader": {"persistent_workers": True},
    "test_dataloader": {"persistent_workers": True},
    "val_evaluator": {"type": "CocoMetric", "format_only": False},
    "test_evaluator": {"type": "CocoMetric", "format_only": False},
}


def translated(authors: Settings) -> Settings:
    """Rewrite a resolved MMDetection 2.8 config for MMDetection 3."""
    everything = {"config": deepcopy(authors)}
    with opened(everything, "config") as old:
        data, preprocessor = translated_data(old)
        model = translated_model(old)
        model["data_preprocessor"] = preprocessor
        return {"model": model, **data, **translated_schedule(old), **translated_runtime(old)}


def translated_model(old: Settings) -> Settings:
    """Neck, heads, assigners, samplers and the second stage's test settings are unchanged."""
    with opened(old, "model") as model, opened(old, "train_cfg") as train, opened(old, "test_cfg") as test:
        pretrained = model.pop("pretrained")
        new = {"type": model.pop("type"), "neck": model.pop("neck")}
        with opened(model, "backbone") as backbone:
            drop(backbone, **OF_A_RESNET)
            new["backbone"] = {
                "type": "DPT",
                "size": backbone.pop("type").removeprefix("dpt_"),
                "init_cfg": {
                    "type": "Pretrained",
                    "checkpoint": pretrained.removeprefix("pretrained/").removesuffix(".pth"),
                },
            }
        if new["type"] == "RetinaNet":
            new["bbox_head"] = model.pop("bbox_head")
            drop(train, debug=False)
            drop(test, min_bbox_size=0)
            new["train_cfg"] = take_all(train)
            new["test_cfg"] = take_all(test) | KEEP_ALL_BOXES
        else:
            new["rpn_head"] = model.pop("rpn_head")
            new["roi_head"] = model.pop("roi_head")
            for stage in ("rpn", "rcnn"):
                drop(train[stage], debug=False)
            new["train_cfg"] = {
                "rpn": train.pop("rpn"),
                "rpn_proposal": translated_proposals(train),
                "rcnn": train.pop("rcnn"),
            }
            new["test_cfg"] = {"rpn": translated_proposals(test, "rpn"), "rcnn": test.pop("rcnn")}
        return new


# The authors' backbone took and ignored these, left in the config from the ResNet that it replaced.
OF_A_RESNET: Settings = {
    "depth": 50,
    "num_stages": 4,
    "out_indices": [0, 1, 2, 3],
    "frozen_stages": 1,
    "norm_cfg": {"type": "BN", "requires_grad": True},
    "norm_eval": True,
    "style": "pytorch",
}

# At 0, MMDetection 2.8 kept every box (RetinaNet's at any value); MMDetection 3 wants each side to be longer.
KEEP_ALL_BOXES: Settings = {"min_bbox_size": -1}


def translated_proposals(old: Settings, key: str = "rpn_proposal") -> Settings:
    with opened(old, key) as proposals:
        kept = proposals.pop("nms_post")
        drop(proposals, max_num=kept)  # 2.8 never read it
        drop(proposals, nms_across_levels=False)  # neither version does
        drop(proposals, min_bbox_size=0)
        return {
            "nms_pre": proposals.pop("nms_pre"),
            "nms": {"type": "nms", "iou_threshold": proposals.pop("nms_thr")},
            "max_per_img": kept,
            **KEEP_ALL_BOXES,
        }


def translated_data(old: Settings) -> tuple[Settings, Settings]:
    """Return the dataloaders and evaluators, and the data preprocessor, which is now part of the model."""
    root = old.pop("data_root")
    drop(old, dataset_type="CocoDataset")
    with opened(old, "data") as data, opened(old, "evaluation") as evaluation:
        drop(old, train_pipeline=data["train"]["pipeline"], test_pipeline=data["val"]["pipeline"])
        drop(data, test=data["val"])
        train_set, preprocessor = translated_dataset(data, "train", root)
        val_set, same_preprocessor = translated_dataset(data, "val", root)
        assert same_preprocessor == {key: preprocessor[key] for key in preprocessor if key != "pad_mask"}
        drop(old, img_norm_cfg=NORMALISATION)

        workers = data.pop("workers_per_gpu")
        evaluation.setdefault("interval", 1)
        drop(evaluation, interval=1)  # see val_interval
        val_dataloader = {"num_workers": workers, "dataset": val_set}
        evaluator = {"ann_file": OUR_ROOT + val_set["ann_file"], "metric": evaluation.pop("metric")}
        return {
            "data_root": OUR_ROOT,
            "train_dataloader": {
                "batch_size": data.pop("samples_per_gpu"),
                "num_workers": workers,
                "dataset": train_set,
            },
            "val_dataloader": val_dataloader,
            "test_dataloader": val_dataloader,
            "val_evaluator": evaluator,
            "test_evaluator": evaluator,
        }, preprocessor


OUR_ROOT = "data/coco/"
NORMALISATION: Settings = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}


def translated_dataset(data: Settings, split: str, root: str) -> tuple[Settings, Settings]:
    with opened(data, split) as old:
        steps = old.pop("pipeline")
        if split == "val":
            steps = without_augmentation(steps)
        pipeline, preprocessor = translated_pipeline(steps)
        return {
            "type": old.pop("type"),
            "data_root": OUR_ROOT,
            "ann_file": old.pop("ann_file").removeprefix(root),
            "data_prefix": {"img": old.pop("img_prefix").removeprefix(root)},
            "pipeline": pipeline,
        }, preprocessor


def without_augmentation(steps: list[Settings]) -> list[Settings]:
    """Unwrap a test pipeline that takes one scale and no flip."""
    load, augmentation = steps
    resize, flip, *others = augmentation.pop("transforms")
    assert resize["type"] == "Resize"
    resize["img_scale"] = augmentation.pop("img_scale")
    drop(augmentation, type="MultiScaleFlipAug", flip=False)
    assert not augmentation
    assert flip == {"type": "RandomFlip"}
    return [load, resize, *others]


def translated_pipeline(steps: list[Settings]) -> tuple[list[Settings], Settings]:
    """Return the transforms, and the data preprocessor that replaces some of them."""
    transforms: list[Settings] = []
    preprocessor: Settings = {"type": "DetDataPreprocessor"}
    packed = ["img"]
    for number, step in enumerate(deepcopy(steps)):
        kind = step.pop("type")
        if kind == "LoadImageFromFile":
            transforms.append({"type": kind})
        elif kind == "LoadAnnotations":
            packed += ["gt_bboxes", "gt_labels"] + ["gt_masks"] * step.get("with_mask", False)
            transforms.append({"type": kind, **take_all(step)})
        elif kind == "Resize":
            keep_ratio, scale = step.pop("keep_ratio"), step.pop("img_scale")
            if isinstance(scale[0], int):
                transforms.append({"type": "Resize", "scale": scale, "keep_ratio": keep_ratio})
            else:
                drop(step, multiscale_mode="value")  # one of these sizes, not one between two
                transforms.append({"type": "RandomChoiceResize", "scales": scale, "keep_ratio": keep_ratio})
        elif kind == "RandomFlip":
            transforms.append({"type": kind, "prob": step.pop("flip_ratio")})
        elif kind == "Normalize":
            drop(step, **NORMALISATION)
            preprocessor |= {
                "mean": NORMALISATION["mean"],
                "std": NORMALISATION["std"],
                "bgr_to_rgb": NORMALISATION["to_rgb"],
            }
        elif kind == "Pad":
            preprocessor["pad_size_divisor"] = step.pop("size_divisor")
            if "gt_masks" in packed:
                preprocessor["pad_mask"] = True
        elif kind == "ImageToTensor":
            drop(step, keys=["img"])
        elif kind == "Collect":
            drop(step, keys=packed)
            transforms.append({"type": "PackDetInputs"})
        else:
            assert kind == "DefaultFormatBundle", f"no rule for the transform {kind}"
        assert not step, f"no rule for {step} of step {number}, {kind}"
    return transforms, preprocessor


def translated_schedule(old: Settings) -> Settings:
    with opened(old, "optimizer_config") as optimizer, opened(old, "lr_config") as lr:
        drop(old, workflow=[["train", 1]])  # training only: the losses of the validation set are not computed
        drop(lr, policy="step", warmup="linear")
        return {
            "train_cfg": {
                "type": "ResumableTrainLoop",
                "max_epochs": old.pop("total_epochs"),
                "val_interval": 1,
            },
            "optim_wrapper": {
                "optimizer": old.pop("optimizer"),
                "clip_grad": optimizer.pop("grad_clip"),
            },
            "param_scheduler": [
                {
                    "type": "LinearLR",
                    "start_factor": lr.pop("warmup_ratio"),
                    "by_epoch": False,
                    "begin": 0,
                    "end": lr.pop("warmup_iters") + 1,  # see test_training.py
                },
                {"type": "MultiStepLR", "milestones": lr.pop("step"), "gamma": 0.1, "by_epoch": True},
            ],
        }


def translated_runtime(old: Settings) -> Settings:
    with opened(old, "checkpoint_config") as checkpoint, opened(old, "log_config") as log:
        drop(log, hooks=[{"type": "TextLoggerHook"}])
        drop(old, resume_from=None)
        drop(checkpoint, interval=1)  # the end of each epoch, as always with ResumableCheckpointHook
        interval = log.pop("interval")
        return {
            "default_hooks": {
                "checkpoint": {"type": "ResumableCheckpointHook"},
                "logger": {"type": "LoggerHook", "interval": interval},
            },
            "log_processor": {"window_size": interval},  # each line is the mean since the last one
            "log_level": old.pop("log_level"),
            "env_cfg": {"dist_cfg": old.pop("dist_params")},
            "load_from": old.pop("load_from"),
            "resume": False,
        }


@contextmanager
def opened(settings: Settings, key: str) -> Iterator[Settings]:
    """Take `settings[key]` out and give it to the block, which must take everything out of it."""
    part: Settings = settings.pop(key)
    yield part
    assert not part, f"no rule for these settings of {key}: {part}"


def drop(settings: Settings, **expected: Any) -> None:
    """Take out settings that need no translation, if they have the expected values."""
    for key, value in expected.items():
        assert settings.pop(key) == value, key


def take_all(settings: Settings) -> Settings:
    """Take out everything: these settings have the same names and meanings in both versions."""
    taken = dict(settings)
    settings.clear()
    return taken


def merged(*parts: Settings) -> Settings:
    """Merge nested settings, which must not overlap."""
    result: Settings = {}
    for part in parts:
        for key, value in part.items():
            if key not in result:
                result[key] = value
            else:
                assert isinstance(value, dict) and isinstance(result[key], dict), f"{key} is set twice"
                result[key] = merged(result[key], value)
    return result


def tuples_as_lists(settings: Settings) -> Settings:
    """Return the settings after a round trip through JSON, like the authors'."""
    plain: Settings = json.loads(json.dumps(settings))
    return plain


@pytest.mark.parametrize("name", ["retinanet_dpt_t_fpn_1x_coco", "mask_rcnn_dpt_t_fpn_mstrain-poly_3x_coco"])
def test_no_setting_of_the_authors_is_passed_over(name: str) -> None:
    """Each changed value and each added key in the authors' config changes the translation."""
    for changed, where in variations(AUTHORS[name]):
        try:
            shown = translated(changed) != translated(AUTHORS[name])
        except (AssertionError, KeyError):
            shown = True  # no rule takes it
        assert shown, where


def variations(settings: Any, where: str = "") -> Iterator[tuple[Any, str]]:
    """Yield the settings with one value changed or one key added, and the place of the change."""
    if isinstance(settings, dict):
        yield settings | {"surprise": 1}, f"{where}.surprise"
    if isinstance(settings, dict | list):
        for key in settings if isinstance(settings, dict) else range(len(settings)):
            for part, place in variations(settings[key], f"{where}.{key}"):
                changed = settings.copy()
                changed[key] = part
                yield changed, place
    elif isinstance(settings, int | float):
        yield settings + 1, where
    else:
        yield f"{settings}?", where


class Defaults(NamedTuple):
    """Defaults of classes: those of MMDetection 2.8, and new arguments that change nothing."""

    file: str
    name: str
    same: str = ""
    new: str = ""


LEFT_TO_DEFAULTS = [
    Defaults(
        "mmdet/models/data_preprocessors/data_preprocessor.py",
        "DetDataPreprocessor",
        new="pad_value=0, pad_mask=False, mask_pad_value=0, batch_augments=None",
    ),
    Defaults(
        "mmdet/models/necks/fpn.py",
        "FPN",
        same="start_level=0, end_level=-1, add_extra_convs=False, relu_before_extra_convs=False, "
        "no_norm_on_lateral=False, conv_cfg=None, norm_cfg=None, act_cfg=None, "
        "upsample_cfg=dict(mode='nearest')",
        new="init_cfg=dict(type='Xavier', layer='Conv2d', distribution='uniform')",
    ),
    Defaults("mmdet/models/dense_heads/anchor_head.py", "AnchorHead", same="reg_decoded_bbox=False"),
    Defaults(
        "mmdet/models/dense_heads/retina_head.py",
        "RetinaHead",
        same="conv_cfg=None, norm_cfg=None",
        new="init_cfg=dict(type='Normal', layer='Conv2d', std=0.01, "
        "override=dict(type='Normal', name='retina_cls', std=0.01, bias_prob=0.01))",
    ),
    Defaults(
        "mmdet/models/dense_heads/rpn_head.py",
        "RPNHead",
        new="num_classes=1, num_convs=1, init_cfg=dict(type='Normal', layer='Conv2d', std=0.01)",
    ),
    Defaults(
        "mmdet/models/task_modules/prior_generators/anchor_generator.py",
        "AnchorGenerator",
        same="scales=None, base_sizes=None, scale_major=True, centers=None, center_offset=0.0",
        new="use_box_type=False",
    ),
    Defaults(
        "mmdet/models/task_modules/coders/delta_xywh_bbox_coder.py",
        "DeltaXYWHBBoxCoder",
        same="clip_border=True",
        new="add_ctr_clamp=False",
    ),
    Defaults(
        "mmdet/models/task_modules/assigners/max_iou_assigner.py",
        "MaxIoUAssigner",
        same="gt_max_assign_all=True, ignore_wrt_candidates=True, match_low_quality=True, gpu_assign_thr=-1, "
        "iou_calculator=dict(type='BboxOverlaps2D')",
        new="perm_repeat_gt_cfg=None",
    ),
    Defaults(
        "mmdet/models/losses/focal_loss.py",
        "FocalLoss",
        same="reduction='mean'",
        new="activated=False",
    ),
    Defaults("mmdet/models/losses/smooth_l1_loss.py", "L1Loss", same="reduction='mean'"),
    Defaults(
        "mmdet/models/losses/cross_entropy_loss.py",
        "CrossEntropyLoss",
        same="use_sigmoid=False, use_mask=False, reduction='mean', class_weight=None",
        new="ignore_index=None, avg_non_ignore=False",
    ),
    Defaults("mmdet/models/roi_heads/base_roi_head.py", "BaseRoIHead", same="shared_head=None"),
    Defaults(
        "mmdet/models/roi_heads/roi_extractors/single_level_roi_extractor.py",
        "SingleRoIExtractor",
        same="finest_scale=56",
    ),
    Defaults("mmcv/ops/roi_align.py", "RoIAlign", same="pool_mode='avg', aligned=True"),
    Defaults(
        "mmdet/models/roi_heads/bbox_heads/bbox_head.py",
        "BBoxHead",
        same="with_avg_pool=False, with_cls=True, with_reg=True, reg_decoded_bbox=False",
        new="reg_predictor_cfg=dict(type='Linear'), cls_predictor_cfg=dict(type='Linear')",
    ),
    Defaults(
        "mmdet/models/roi_heads/bbox_heads/convfc_bbox_head.py",
        "ConvFCBBoxHead",
        same="conv_cfg=None, norm_cfg=None",
    ),
    Defaults(
        "mmdet/models/roi_heads/mask_heads/fcn_mask_head.py",
        "FCNMaskHead",
        same="roi_feat_size=14, conv_kernel_size=3, class_agnostic=False, conv_cfg=None, norm_cfg=None, "
        "upsample_cfg=dict(type='deconv', scale_factor=2)",
        new="predictor_cfg=dict(type='Conv')",
    ),
    Defaults("mmcv/transforms/loading.py", "LoadImageFromFile", same="to_float32=False, color_type='color'"),
    Defaults("mmcv/transforms/loading.py", "LoadAnnotations", same="with_label=True, with_seg=False"),
    Defaults(
        "mmdet/datasets/transforms/loading.py",
        "LoadAnnotations",
        same="with_mask=False, poly2mask=True",
    ),
    Defaults(
        "mmcv/transforms/processing.py",
        "Resize",
        same="backend='cv2'",
        new="scale_factor=None, clip_object_border=True, interpolation='bilinear'",
    ),
    Defaults("mmcv/transforms/processing.py", "RandomChoiceResize", new="resize_type='Resize'"),
    Defaults("mmcv/transforms/processing.py", "RandomFlip", same="direction='horizontal'"),
    Defaults(
        "mmdet/evaluation/metrics/coco_metric.py",
        "CocoMetric",
        same="classwise=False, proposal_nums=(100, 300, 1000), iou_thrs=None",
    ),
]


@pytest.mark.parametrize("left", LEFT_TO_DEFAULTS, ids=lambda left: left.name)
def test_defaults_do_what_they_did(left: Defaults) -> None:
    call = ast.parse(f"f({', '.join(filter(None, (left.same, left.new)))})", mode="eval").body
    assert isinstance(call, ast.Call)
    expected = {str(keyword.arg): ast.unparse(keyword.value) for keyword in call.keywords}
    actual = default_arguments(left.file, left.name)
    assert {name: actual.get(name) for name in expected} == expected


def default_arguments(file: str, class_name: str) -> dict[str, str]:
    """Read a constructor's defaults in the source: importing mmdet's models needs compiled operators."""
    package, path = file.split("/", 1)
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / path).read_text())
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    (init,) = (node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    with_default = init.args.args[len(init.args.args) - len(init.args.defaults) :]
    return {arg.arg: ast.unparse(value) for arg, value in zip(with_default, init.args.defaults, strict=True)}


def test_there_is_a_config_for_every_published_result() -> None:
    published = read_json("published_results.json")
    named = {row["config"] for detector in ("retinanet", "mask_rcnn") for row in published[detector]}
    assert named == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.py")}
    assert {Path(path).stem for path in named} == set(AUTHORS)


@every_config
def test_config_is_only_what_it_changes(name: str) -> None:
    lines = (ROOT / "configs" / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 15


@every_config
def test_image_scales_are_tuples(name: str) -> None:
    """MMCV reads a list as a choice of scales, and only a tuple as one scale."""
    settings = our_config(name)
    for split in ("train", "val", "test"):
        for transform in settings[f"{split}_dataloader"]["dataset"]["pipeline"]:
            scales = transform.get("scales", [transform["scale"]] if "scale" in transform else [])
            assert all(type(scale) is tuple for scale in scales)
