"""The broker process: worker registry, prefix index and leases. Page bytes never pass through it."""
