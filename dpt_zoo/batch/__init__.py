"""Detection in many images and videos, with the results written to one folder."""
