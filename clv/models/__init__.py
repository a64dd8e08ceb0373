"""Backbone, heads and losses: torch and transformers, no Ray, no I/O."""
