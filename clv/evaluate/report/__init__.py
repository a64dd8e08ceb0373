"""Evaluation report: findings of a panel, the verdict in words, the model card (Markdown) and the HTML page."""
