"""Reports of a run: figures, tables and signatures of known failures."""
