"""Judging a model: metrics, paired bootstrap, peers, calibration, leak checks, report. Tables in, tables out."""
