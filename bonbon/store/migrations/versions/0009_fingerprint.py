"""Which request an idempotency key came with

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("groups", sa.Column("fingerprint", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("groups", "fingerprint")
