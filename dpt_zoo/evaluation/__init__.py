"""How good a detector is: what it finds in images, and COCO's figures of that."""
