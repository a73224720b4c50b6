"""Keep the scores that a group had before another reward scored it again

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

from bonbon.store import tables
from bonbon.store.storable_text import REASON_LENGTH

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "earlier_scores",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("group_id", sa.String(length=32), nullable=False),
        sa.Column("version", tables.Name(), nullable=False),
        sa.Column("replaced", tables.Timestamp(timezone=True), nullable=False),
        sa.Column("reward_name", tables.Name(), nullable=False),
        sa.Column("reward_version", tables.Name(), nullable=False),
        sa.Column("degraded", tables.SafeText(REASON_LENGTH)),
        sa.Column("unclean", sa.String(length=16)),
        sa.Column("scores", tables.Document(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["groups.id"], name=op.f("fk_earlier_scores_group_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_earlier_scores")),
    )
    op.create_index(op.f("ix_earlier_scores_group_id"), "earlier_scores", ["group_id"])
    op.create_index("ix_earlier_scores_version", "earlier_scores", ["version", "id"])


def downgrade() -> None:
    op.drop_table("earlier_scores")
