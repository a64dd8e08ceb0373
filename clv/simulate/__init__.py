"""A shop that never was: seeded events at any size, and what each of its customers was expected to do."""
