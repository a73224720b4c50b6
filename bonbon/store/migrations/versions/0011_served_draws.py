"""Store the number of draws of comparisons, live win rates and versions, and count what champions save

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

from bonbon.store import tables

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

OLD_KEY = ["version", "opponent", "reward_name", "reward_version"]


def upgrade() -> None:
    op.add_column("versions", sa.Column("raised_k", sa.Integer()))
    # Until now every distilled champion that had no verdict on k answered with one draw.
    op.add_column("comparisons", sa.Column("k", sa.Integer(), server_default="1", nullable=False))
    with op.batch_alter_table("win_rates") as table:
        table.add_column(sa.Column("k", sa.Integer(), server_default="1", nullable=False))
        table.drop_constraint("pk_win_rates", type_="primary")
        table.create_primary_key("pk_win_rates", [*OLD_KEY, "k"])
    op.create_table(
        "savings",
        sa.Column("version", tables.Name(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("answers", "answer_tokens", "audits", "audit_tokens", "best_of_n_tokens")
        ),
        sa.Column("since", tables.Timestamp(timezone=True), nullable=False),
        sa.Column("updated", tables.Timestamp(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("version", "n", name=op.f("pk_savings")),
    )


def downgrade() -> None:
    op.drop_table("savings")
    rates = sa.table("win_rates", sa.column("k", sa.Integer()))
    op.execute(rates.delete().where(rates.c.k != 1))
    with op.batch_alter_table("win_rates") as table:
        table.drop_constraint("pk_win_rates", type_="primary")
        table.create_primary_key("pk_win_rates", OLD_KEY)
        table.drop_column("k")
    with op.batch_alter_table("comparisons") as table:
        table.drop_column("k")
    with op.batch_alter_table("versions") as table:
        table.drop_column("raised_k")
