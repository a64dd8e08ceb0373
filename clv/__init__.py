"""Customer lifetime value: histories, an anchored BERT-style model, honest evaluation and serving, on Ray."""

__version__ = "0.1.0"
