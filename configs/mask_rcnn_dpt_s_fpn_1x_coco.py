_base_ = "mask_rcnn_dpt_t_fpn_1x_coco.py"

model = dict(backbone=dict(size="small", init_cfg=dict(checkpoint="dpt_small")))
