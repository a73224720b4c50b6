"""A group's penalties, biases and other sampling fields

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

from bonbon.store import tables

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("groups", sa.Column("other_sampling", tables.Document(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("groups", "other_sampling")
