"""A dataset is one YAML file: its models, its errors, and drafts of it."""
