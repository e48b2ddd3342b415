# The learning rate is for 16 images in a step: 8 GPUs with 2 images each. The configs of Mask R-CNN double it.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    clip_grad=None,
)
auto_scale_lr = dict(enable=False, base_batch_size=16)

train_cfg = dict(type="ResumableTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

param_scheduler = [
    # The factor at iteration i < 500 is 0.001 + 0.999 * i / 500: MMEngine divides by the length less one.
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type="MultiStepLR", milestones=[8, 11], gamma=0.1, by_epoch=True),
]
