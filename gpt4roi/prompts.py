"""Fixed texts: the sentence that shows the picture."""

IMAGE_PREAMBLE = "The <image> provides an overview of the picture.\n"
"""Stands before the first question. Released models were trained with exactly this sentence."""
