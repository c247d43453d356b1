"""What the operator makes, as pure functions from typed specs to plain Kubernetes objects."""
