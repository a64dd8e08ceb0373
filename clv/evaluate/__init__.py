"""Judging a model: metrics, paired bootstrap, baselines, calibration, leak checks, report. Tables in, tables out."""
