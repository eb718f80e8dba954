"""What Alembic runs to bring a database to the newest tables, on the connection it is given."""

from alembic import context

from serving.accounts.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot change a column in place
)
with context.begin_transaction():
    context.run_migrations()
