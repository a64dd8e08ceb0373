"""Encoders of event and text sequences."""
