"""Several views of an image, slices and scales, and the objects that were detected in them."""
