"""API keys

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from bonbon.store import tables

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", tables.SafeText(), nullable=False),
        sa.Column("tenant", tables.SafeText(), nullable=False),
        sa.Column("scopes", tables.Document(none_as_null=True), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created", tables.Timestamp(timezone=True), nullable=False),
        sa.Column("expires", tables.Timestamp(timezone=True), nullable=True),
        sa.Column("revoked", tables.Timestamp(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
    )
    op.create_index(op.f("ix_keys_digest"), "keys", ["digest"], unique=True)


def downgrade() -> None:
    op.drop_table("keys")
