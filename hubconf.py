"""The torch.hub entry points: `torch.hub.load(repo, "mrcnn_dpt_t_1x")` is `dpt_zoo.create_model("mrcnn_dpt_t_1x")`."""

from dpt_zoo.torch_hub import entry_points as _entry_points

dependencies = [
    *("torch", "torchvision", "timm", "mmdet", "mmengine", "mmcv", "numpy", "PIL", "cv2"),
    *("pycocotools", "faster_coco_eval", "matplotlib", "defusedxml", "yaml"),
    *("safetensors", "filelock", "huggingface_hub", "requests", "urllib3", "rich", "jinja2", "psutil"),
]

globals().update(_entry_points())
