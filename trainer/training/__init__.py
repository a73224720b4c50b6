"""Trains a policy on groups of scored candidates."""
