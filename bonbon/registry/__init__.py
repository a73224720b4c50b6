"""The model registry: versions, their files, aliases and the audit trail."""
