"""Backbones: encoders of event sequences and of texts, built with transformers or torch, fresh or pretrained."""
