"""Frames of images: the size of one as it is stored and as it is seen upright."""

from __future__ import annotations


def oriented_size(size: tuple[int, int], exif_rotated: bool) -> tuple[int, int]:
    """Returns the (height, width) of an image as seen upright.

    Args:
        size: (height, width) as stored.
        exif_rotated: Whether its EXIF orientation turns it by a quarter.
    """
    height, width = size
    return (width, height) if exif_rotated else size
