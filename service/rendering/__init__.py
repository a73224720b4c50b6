"""Writes answers in the formats of OpenAI's API."""
