"""One group for each idempotency key; groups of one request

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("groups", sa.Column("idempotency", sa.String(length=64), nullable=True))
    op.create_index(
        "ix_groups_idempotency",
        "groups",
        ["idempotency"],
        unique=True,
        sqlite_where=sa.text("idempotency IS NOT NULL"),
        postgresql_where=sa.text("idempotency IS NOT NULL"),
    )
    op.create_index("ix_groups_request_id", "groups", ["request_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_groups_request_id", "groups")
    op.drop_index("ix_groups_idempotency", "groups")
    op.drop_column("groups", "idempotency")
