"""Measures a trained version and decides whether it may be promoted."""
