"""Rewards: what scores candidates."""
