"""Other formats become the unified one, and that becomes COCO's."""
