"""Run by alembic for every command; `migrate.py` hands over the open connection.

A developer's `alembic revision --autogenerate` is the same call with another command:
see docs; there is no alembic.ini because the catalog's URL is the server's business.
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
