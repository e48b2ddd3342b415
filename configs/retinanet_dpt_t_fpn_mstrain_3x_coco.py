_base_ = [
    "_base_/models/retinanet_dpt.py",
    "_base_/datasets/coco_detection_multiscale.py",
    "_base_/schedules/3x.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(size="tiny", init_cfg=dict(checkpoint="dpt_tiny")))
