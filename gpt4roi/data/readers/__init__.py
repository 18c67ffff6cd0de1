"""Readers of the original's ten data sets, one file each."""
