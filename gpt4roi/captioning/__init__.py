"""Boxes of a whole data set in, the same file with a text at every box out."""
