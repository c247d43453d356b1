"""The prefill half of a worker: prompts wait in lanes, a policy forms batches, pages are found for them."""
