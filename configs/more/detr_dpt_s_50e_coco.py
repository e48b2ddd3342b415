# DETR (arXiv 2005.12872) with the settings and the schedule of the authors' detr_dpt_s_8x2_50ep_coco.py.
_base_ = [
    "../_base_/models/dpt.py",
    "../_base_/datasets/coco_detection_multiscale.py",
    "../_base_/schedules/1x.py",
    "../_base_/default_runtime.py",
]

attention = dict(embed_dims=256, num_heads=8, dropout=0.1, batch_first=True)
ffn = dict(embed_dims=256, feedforward_channels=2048, num_fcs=2, ffn_drop=0.1, act_cfg=dict(type="ReLU", inplace=True))
model = dict(
    type="DETR",
    num_queries=100,
    backbone=dict(size="small", out_indices=(3,), init_cfg=dict(checkpoint="dpt_small")),
    neck=dict(
        _delete_=True,
        type="ChannelMapper",
        in_channels=[512],
        kernel_size=1,
        out_channels=256,
        act_cfg=None,
        norm_cfg=None,
        num_outs=1,
    ),
    encoder=dict(num_layers=6, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=6,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
        return_intermediate=True,
    ),
    positional_encoding=dict(num_feats=128, normalize=True),
    bbox_head=dict(
        type="DETRHead",
        num_classes=80,
        embed_dims=256,
        loss_cls=dict(type="CrossEntropyLoss", bg_cls_weight=0.1, use_sigmoid=False, loss_weight=1.0, class_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=5.0),
        loss_iou=dict(type="GIoULoss", loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type="HungarianAssigner",
            match_costs=[
                dict(type="ClassificationCost", weight=1.0),
                dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                dict(type="IoUCost", iou_mode="giou", weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=100),
)

optim_wrapper = dict(
    clip_grad=dict(_delete_=True, max_norm=0.1),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1, decay_mult=1.0))),
)

train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type="MultiStepLR", milestones=[33], gamma=0.1, by_epoch=True)]
