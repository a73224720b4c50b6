"""What the method promises, measured where it can be computed: `python -m experiments`, docs/results.md."""
