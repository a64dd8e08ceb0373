"""The BTYD model: buy-till-you-die counts and spend, their degenerate-fit check, and the seasonal level."""
