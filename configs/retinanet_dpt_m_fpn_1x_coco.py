_base_ = "retinanet_dpt_t_fpn_1x_coco.py"

model = dict(backbone=dict(size="medium", init_cfg=dict(checkpoint="dpt_medium")))
