"""How a process shows itself to the outside: logs, traces, metrics, probes, its ports.

Importing it before gRPC keeps gRPC's C core, whose lines are not JSON, from writing about every closed
connection; GRPC_VERBOSITY in the environment wins.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
