"""Checks everything that the service needs, without starting it."""
