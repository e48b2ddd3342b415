# Faster R-CNN: the authors' Mask R-CNN and its schedule, without masks.
_base_ = [
    "../_base_/models/mask_rcnn_dpt.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/1x.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="FasterRCNN",
    data_preprocessor=dict(pad_mask=False),
    backbone=dict(size="small", init_cfg=dict(checkpoint="dpt_small")),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
)

optim_wrapper = dict(optimizer=dict(lr=2e-4))
