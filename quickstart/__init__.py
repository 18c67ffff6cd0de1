"""The embedded data set: scenes composed from cut-out pictures, and model parts to train on them."""
