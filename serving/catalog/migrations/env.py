"""Run by alembic for every command; `migrate.py` hands over the open connection.

There is no alembic.ini, because the catalog's URL is the server's business. A new revision is
made with `alembic.command.revision(alembic_config(connection), message=..., autogenerate=True)`
on a migrated scratch catalog.
"""

from alembic import context

# Alembic runs this file by path, so it has no package to be relative to.
from lorebase.serving.catalog.models import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("migrations run through lorebase.serving.catalog.Catalog.open(url)")

context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite can't alter most things in place; batch mode copies the table.
    render_as_batch=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
