"""The kernels of the merge methods, one file a family."""
