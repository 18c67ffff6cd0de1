"""Evaluation on benchmarks: load questions, predict and journal answers, score them, report."""
