"""What was erased, so that a group which comes late is, too

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

from bonbon.store import tables

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("time", tables.Timestamp(timezone=True), nullable=False),
        sa.Column("older_than", tables.Timestamp(timezone=True), nullable=True),
        sa.Column("user_digest", sa.String(length=64), nullable=True),
        sa.Column("request_digest", sa.String(length=64), nullable=True),
        sa.Column("tenant", tables.SafeText(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
    )
    op.create_index(op.f("ix_erasures_time"), "erasures", ["time"], unique=False)


def downgrade() -> None:
    op.drop_table("erasures")
