default_scope = "mmdet"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="ResumableCheckpointHook", save_best="coco/bbox_mAP"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="DetVisualizationHook"),
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
log_level = "INFO"
visualizer = dict(type="DetLocalVisualizer", name="visualizer", vis_backends=[dict(type="LocalVisBackend")])

env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend="nccl"))

load_from = None
resume = False
