"""Kernels for sparse weights: for each operation a torch reference, a Triton kernel, and one entry in one dispatcher.

Nothing is imported here, and there is no `__version__`: with a checkout first on the path, other packages probe a
module called `kernels` and look for one.
"""
