"""How far each round of training is

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

from bonbon.store import tables

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("run", tables.SafeText(), nullable=False),
        sa.Column("sampler", sa.String(255), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("epoch", sa.Float(53), nullable=False),
        sa.Column("epochs", sa.Float(53), nullable=False),
        sa.Column("curve", tables.Document(), nullable=False),
        sa.Column("version", sa.String(255), nullable=True),
        sa.Column("outcome", tables.SafeText(), nullable=True),
        sa.Column("started", tables.Timestamp(), nullable=False),
        sa.Column("updated", tables.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_rounds_started", "rounds", ["started"])


def downgrade() -> None:
    op.drop_table("rounds")
