"""Limits of a key's own."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("keys", sa.Column("quota", sa.JSON))


def downgrade() -> None:
    op.drop_column("keys", "quota")
