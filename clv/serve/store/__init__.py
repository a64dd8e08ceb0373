"""The online store: one protocol, SQLite or Redis behind it."""
