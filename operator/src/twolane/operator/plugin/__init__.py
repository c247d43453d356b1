"""`twolane k8s ...` and `kubectl twolane ...`: what a person asks about deployments in a cluster."""
