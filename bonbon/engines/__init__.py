"""Engines: what draws candidates."""
