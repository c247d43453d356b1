"""gRPC plumbing of every process: server, channel, error mapping, messages to plain values."""
