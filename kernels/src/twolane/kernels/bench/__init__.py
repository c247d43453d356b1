"""Benchmarks of the kernels against the device's measured limits and torch: ``python -m
twolane.kernels.bench``.

Run on a CUDA machine; the cases are also run once, at tiny sizes, by the interpreter tests, so that no
GPU meets them for the first time.
"""
