"""Geometry: arithmetic of boxes, masks and the frames that they are in."""
