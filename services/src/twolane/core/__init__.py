"""Pure types and words that every twolane process shares; imports nothing of the others."""
