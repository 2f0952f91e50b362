"""Triton kernels, imported by the dispatcher where they are used: importing them needs triton, but no GPU."""
