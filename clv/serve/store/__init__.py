"""The online store: histories by customer id, in SQLite or Redis."""
