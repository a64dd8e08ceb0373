"""Evaluation of forecasts: metrics, paired bootstrap, baselines, leak checks, card and report."""
