_base_ = [
    "_base_/models/mask_rcnn_dpt.py",
    "_base_/datasets/coco_instance.py",
    "_base_/schedules/1x.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(size="tiny", init_cfg=dict(checkpoint="dpt_tiny")))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
