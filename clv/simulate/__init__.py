"""Simulate shops of any size from a seed, with the orders and value that were expected of each customer."""
