"""Checkpoints: opened, built from parts, converted, and made of deltas or adapters; files read and written."""
