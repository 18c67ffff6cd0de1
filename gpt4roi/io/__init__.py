"""Input and output: atomic files, JSON, COCO tables, images on disk, the hub's cache, digests."""
