# Shared by both detectors: image preprocessing, backbone and feature pyramid.
# A config sets the backbone's size and its ImageNet weights.
custom_imports = dict(
    imports=["dpt_zoo.models.detection", "dpt_zoo.training.samplers", "dpt_zoo.training.checkpoints"],
    allow_failed_imports=False,
)

model = dict(
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type="DPT", init_cfg=dict(type="Pretrained")),
    neck=dict(type="FPN", in_channels=[64, 128, 320, 512], out_channels=256, num_outs=5),
)
