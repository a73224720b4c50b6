"""Creates a training Job on Kubernetes when a round can start."""
