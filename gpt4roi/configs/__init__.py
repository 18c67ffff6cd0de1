"""Configuration files that ship with the package: data sets of both stages, sharding files."""
