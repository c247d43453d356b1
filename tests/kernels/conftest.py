"""Keeps the kernel tests out of processes where kernels can run neither compiled nor interpreted.

``ops/`` is collected on a CUDA machine, or in a process started with ``TRITON_INTERPRET=1``, which the
default run starts itself (``test_under_interpreter.py``): the variable would otherwise change every other
test in the process.
"""

from __future__ import annotations

import os

import torch

collect_ignore: list[str] = []
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore.append("ops")
