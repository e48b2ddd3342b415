_base_ = "mask_rcnn_dpt_t_fpn_mstrain-poly_3x_coco.py"

model = dict(backbone=dict(size="medium", init_cfg=dict(checkpoint="dpt_medium")))
