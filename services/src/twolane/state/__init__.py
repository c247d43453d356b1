"""What the broker remembers: one contract, kept in memory or in Redis."""
