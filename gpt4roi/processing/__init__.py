"""Processing: from an image, boxes and a dialogue to the tensors of a batch. Never imports the models."""
