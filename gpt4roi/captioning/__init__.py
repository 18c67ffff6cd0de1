"""Captioning of all boxes of a COCO file: the same file with a text at every box."""
