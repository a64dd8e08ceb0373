"""The small dataset of the models' tests, for forecasts of a network."""

from tests.models.conftest import shop

__all__ = ["shop"]
