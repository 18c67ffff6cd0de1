"""Holds the version: that of the interface, and a local part that says this is a subset."""

__version__ = "1.4.7+gpt4roi.subset"
