"""Answers in OpenAI's words."""
