"""Benchmarks: each is a module with its source, split, prompt, metric and pitfalls at the top."""
