"""The length of a lease, for which it must be watched before its holder can be called late

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("seconds", sa.Float(precision=53), nullable=True))


def downgrade() -> None:
    op.drop_column("leases", "seconds")
