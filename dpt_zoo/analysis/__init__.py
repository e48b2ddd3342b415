"""What predictions are worth: metrics, errors by type, thresholds, and pictures of them."""
