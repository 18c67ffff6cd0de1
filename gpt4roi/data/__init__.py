"""Data sets: readers, their index, the unified format, mixtures, the training dataset, conversion."""
