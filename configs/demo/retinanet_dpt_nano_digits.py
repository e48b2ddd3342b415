# RetinaNet with the DPT of reduced width, on digit scenes.
_base_ = [
    "../_base_/models/retinanet_dpt.py",
    "../_base_/datasets/digit_scenes.py",
    "../_base_/schedules/demo.py",
    "../_base_/default_runtime.py",
]

norm_cfg = dict(type="GN", num_groups=16)
model = dict(
    backbone=dict(size="nano", drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64, num_outs=3, norm_cfg=norm_cfg),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=3,
        num_classes=10,
        anchor_generator=dict(octave_base_scale=2, strides=[8, 16, 32]),  # digits are small
        norm_cfg=norm_cfg,
        reg_decoded_bbox=True,
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    ),
)

train_cfg = dict(max_epochs=6)
