"""Looks a data set over before GPU time is spent on it."""
