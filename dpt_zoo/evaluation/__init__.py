"""How good a detector is: what it finds in images, and COCO's metrics of that."""
