"""Tied groups are trained on, too: the index of what may be trained on has them

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    trainable = sa.text("unclean IS NULL OR unclean = 'tied'")
    op.create_index(
        "ix_groups_trainable", "groups", ["version", "id"], sqlite_where=trainable, postgresql_where=trainable
    )
    op.drop_index("ix_groups_clean", "groups")


def downgrade() -> None:
    clean = sa.text("unclean IS NULL")
    op.create_index("ix_groups_clean", "groups", ["version", "id"], sqlite_where=clean, postgresql_where=clean)
    op.drop_index("ix_groups_trainable", "groups")
