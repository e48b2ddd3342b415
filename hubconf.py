"""The torch.hub door: `torch.hub.load(repo, "mrcnn_dpt_t_1x")` is `dpt_zoo.create_model("mrcnn_dpt_t_1x")`."""

from dpt_zoo.torch_hub import entry_points as _entry_points

dependencies = [
    "torch",
    "torchvision",
    "timm",
    "mmdet",
    "mmengine",
    "mmcv",
    "safetensors",
    "requests",
    "filelock",
    "huggingface_hub",
]

globals().update(_entry_points())
