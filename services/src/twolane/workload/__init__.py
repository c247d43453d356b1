"""Requests to offer to a server, and what their latencies say: traces, a generator, latency metrics."""
