"""The HTTP contract: routes, schemas, keys, limits."""
