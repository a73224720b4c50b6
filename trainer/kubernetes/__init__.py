"""Training on Kubernetes in a Job that is made when there is work for it."""
