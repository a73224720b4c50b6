"""Alembic migrations of bonbon's database; append only."""
