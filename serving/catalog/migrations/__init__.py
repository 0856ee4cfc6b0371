"""Schema migrations of the catalog (alembic); run by `Catalog.open`."""
