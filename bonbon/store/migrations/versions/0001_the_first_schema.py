"""The first schema

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

from bonbon.store import tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "aliases",
        sa.Column("alias", sa.String(length=32), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("moved", tables.Timestamp(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("alias", name=op.f("pk_aliases")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("time", tables.Timestamp(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("actor", tables.SafeText(), nullable=False),
        sa.Column("detail", tables.Document(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_table(
        "groups",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("time", tables.Timestamp(timezone=True), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("tenant", tables.SafeText(), nullable=False),
        sa.Column("end_user", tables.SafeText(), nullable=False),
        sa.Column("request_id", tables.SafeText(), nullable=False),
        sa.Column("metadata", tables.Document(none_as_null=True), nullable=False),
        sa.Column("prompt", tables.Document(none_as_null=True), nullable=False),
        sa.Column("prompt_digest", sa.String(length=64), nullable=False),
        sa.Column("prompt_token_ids", tables.TokenIds(), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("temperature", sa.Float(), nullable=False),
        sa.Column("top_p", sa.Float(), nullable=False),
        sa.Column("top_k", sa.Integer(), nullable=False),
        sa.Column("max_tokens", sa.Integer(), nullable=False),
        sa.Column("stop", tables.Document(none_as_null=True), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("reward_name", sa.String(length=255), nullable=False),
        sa.Column("reward_version", sa.String(length=255), nullable=False),
        sa.Column("degraded", tables.SafeText(), nullable=True),
        sa.Column("unclean", sa.String(length=16), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_groups")),
    )
    op.create_index(
        "ix_groups_clean",
        "groups",
        ["version", "id"],
        unique=False,
        sqlite_where=sa.text("unclean IS NULL"),
        postgresql_where=sa.text("unclean IS NULL"),
    )
    op.create_index("ix_groups_end_user", "groups", ["end_user"], unique=False)
    op.create_index(op.f("ix_groups_time"), "groups", ["time"], unique=False)
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=255), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("expires", tables.Timestamp(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "version_numbers",
        sa.Column("base", sa.String(length=255), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("base", name=op.f("pk_version_numbers")),
    )
    op.create_table(
        "versions",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("base", sa.String(length=255), nullable=False),
        sa.Column("parent", sa.String(length=255), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created", tables.Timestamp(timezone=True), nullable=False),
        sa.Column("training", tables.Document(none_as_null=True), nullable=False),
        sa.Column("evaluation", tables.Document(none_as_null=True), nullable=False),
        sa.Column("verdict", tables.Document(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_versions")),
    )
    op.create_table(
        "candidates",
        sa.Column("group_id", sa.String(length=32), nullable=False),
        sa.Column("index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", tables.SafeText(), nullable=False),
        sa.Column("token_ids", tables.TokenIds(), nullable=False),
        sa.Column("logprob", sa.Float(precision=53), nullable=False),
        sa.Column("finish_reason", sa.String(length=16), nullable=False),
        sa.Column("reward", sa.Float(precision=53), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("win_probability", sa.Float(precision=53), nullable=True),
        sa.Column("served", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_candidates_group_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("group_id", "index", name=op.f("pk_candidates")),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("group_id", sa.String(length=32), nullable=False),
        sa.Column("time", tables.Timestamp(timezone=True), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("opponent", sa.String(length=255), nullable=False),
        sa.Column("reward_name", sa.String(length=255), nullable=False),
        sa.Column("reward_version", sa.String(length=255), nullable=False),
        sa.Column("reward", sa.Float(precision=53), nullable=False),
        sa.Column("opponent_reward", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_comparisons_group_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparisons")),
    )
    op.create_index(op.f("ix_comparisons_group_id"), "comparisons", ["group_id"], unique=False)
    op.create_table(
        "feedback",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("group_id", sa.String(length=32), nullable=False),
        sa.Column("time", tables.Timestamp(timezone=True), nullable=False),
        sa.Column("score", sa.Float(precision=53), nullable=True),
        sa.Column("chosen", sa.Integer(), nullable=True),
        sa.Column("comment", tables.SafeText(), nullable=True),
        sa.Column("end_user", tables.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_feedback_group_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
    )
    op.create_index(op.f("ix_feedback_group_id"), "feedback", ["group_id"], unique=False)
