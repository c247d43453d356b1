"""How a process shows itself to the outside: logs, traces, metrics, probes, its ports."""
