"""The embedded data set: scenes composed from cut-out pictures and photographs, and the model parts to train on them."""
