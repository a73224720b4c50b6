"""The data of a run: groups, batches and held-out prompts."""
