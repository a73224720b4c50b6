"""Reports of a run: figures, tables and known ways to fail."""
