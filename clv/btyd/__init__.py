"""The anchor: buy-till-you-die counts and spend, their sentinel, and the seasonal level."""
