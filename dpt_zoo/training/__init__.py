"""Training and fine-tuning, on MMEngine's Runner."""
