"""The embedded data set: scenes composed from cut-out images, and model parts to train on them."""
