"""Baselines that a back-test compares the model with, each refitted at the origin."""
