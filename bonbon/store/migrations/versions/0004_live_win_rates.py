"""Live win rates, counted for all gateways together

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from bonbon.store import tables

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "win_rates",
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("opponent", sa.String(length=255), nullable=False),
        sa.Column("reward_name", sa.String(length=255), nullable=False),
        sa.Column("reward_version", sa.String(length=255), nullable=False),
        sa.Column("wins", sa.Integer(), nullable=False),
        sa.Column("ties", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("sequence", tables.Document(none_as_null=True), nullable=False),
        sa.Column("updated", tables.Timestamp(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("version", "opponent", "reward_name", "reward_version", name=op.f("pk_win_rates")),
    )


def downgrade() -> None:
    op.drop_table("win_rates")
