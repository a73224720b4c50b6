"""Alembic migrations of bonbon's database. Existing migrations never change."""
