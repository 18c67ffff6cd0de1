"""Kernels: the region encoder's operations with equal results in less time; each falls back to the plain call."""
