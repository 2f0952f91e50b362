"""Layouts and operations in plain torch: the definitions that the kernels are held against."""
