"""The scoreboard of accuracy on public shops."""
