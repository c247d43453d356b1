"""The `twolane` command: one verb per process, the local launcher, the terminal chat."""
