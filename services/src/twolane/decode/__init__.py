"""The decode half of a worker: pages are reserved for prompts of others, answers grow in one batch."""
