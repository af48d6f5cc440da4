"""Merging: recipe -> plan -> engine. Methods are described in `specs.py` without torch; their kernels are in `methods/`."""
