"""The benchmark of the embedded data set: `gpt4roi evaluate --benchmark quickstart/benchmark/stamps.py`."""
