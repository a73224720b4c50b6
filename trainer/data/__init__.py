"""What a run is trained on and measured with: groups, batches and held-out prompts."""
