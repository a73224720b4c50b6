"""Measures the method's claims where they can be computed: `python -m experiments` writes docs/results.md."""
