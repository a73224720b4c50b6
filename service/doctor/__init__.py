"""Checks of everything that the service needs, before it starts."""
