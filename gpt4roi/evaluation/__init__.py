"""A model's numbers: benchmarks ask, answers are kept as they come, the field's measures score, a page shows."""
