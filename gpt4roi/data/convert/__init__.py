"""Conversion of other formats to the unified one, and of that to COCO's."""
