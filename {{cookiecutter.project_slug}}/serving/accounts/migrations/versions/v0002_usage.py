"""The ledger."""

import sqlalchemy as sa
from alembic import op

from serving.accounts.tables import Moment

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("at", Moment, nullable=False, index=True),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("request", sa.String(128), nullable=False),
        sa.Column("key", sa.String(16), index=True),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("label", sa.String(63)),
        sa.Column("engine", sa.String(32)),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("cached_tokens", sa.Integer, nullable=False),
        sa.Column("reasoning_tokens", sa.Integer, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("finish_reason", sa.String(16)),
        sa.Column("ttft", sa.Float),
        sa.Column("duration", sa.Float, nullable=False),
        sa.Column("shadow", sa.Boolean, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("usage")
