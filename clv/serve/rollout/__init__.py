"""A new bundle for running replicas: tried, promoted, watched, taken back."""
