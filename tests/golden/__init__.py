"""Tests on recordings. A package, so that its folder `datasets` is not found as the library of that name."""
