"""A group's response format

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

from bonbon.store import tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("groups", sa.Column("response_format", tables.SafeText(), nullable=True))


def downgrade() -> None:
    op.drop_column("groups", "response_format")
