"""Triton kernels of the engine, each beside the plain-torch reference that defines it.

Import the operation you need from its module (``from twolane.kernels.rms_norm import rms_norm``); this file
imports nothing, so that reading one operation never loads Triton for the others. Only ``engine`` calls in
here.
"""
