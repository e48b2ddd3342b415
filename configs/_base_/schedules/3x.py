_base_ = "./1x.py"

train_cfg = dict(max_epochs=36)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type="MultiStepLR", milestones=[28, 34], gamma=0.1, by_epoch=True),
]
