# Mask R-CNN with the DPT of reduced width, on digit scenes. Its backbone starts from that of the RetinaNet, as the
# authors' detectors start from a classifier.
_base_ = [
    "../_base_/models/mask_rcnn_dpt.py",
    "../_base_/datasets/digit_scenes.py",
    "../_base_/schedules/demo.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(size="nano", drop_path_rate=0.0, init_cfg=dict(checkpoint="retinanet_dpt_nano_digits")),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[6])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),  # digits are small
        bbox_head=dict(
            in_channels=64,
            fc_out_channels=256,
            num_classes=10,
            reg_class_agnostic=True,
            loss_bbox=dict(loss_weight=2.0),
        ),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28),
        mask_head=dict(in_channels=64, conv_out_channels=32, num_convs=2, num_classes=10),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=100),
        rcnn=dict(sampler=dict(num=128, pos_fraction=0.25)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)

optim_wrapper = dict(optimizer=dict(lr=1e-3))

train_cfg = dict(max_epochs=3)

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="PackDetInputs"),
        ]
    )
)
val_evaluator = dict(metric=["bbox", "segm"])
test_evaluator = val_evaluator
