"""The BTYD model: buy-till-you-die purchases and spend, the degenerate-fit check, and the seasonal factor."""
