"""Pretraining (experimental): an event encoder learns from events without labels; a new model starts from its weights.

On the project's benchmark, an encoder pretrained on two shops and tuned on the third is neither better nor faster than
a fresh one on any of the three public shops, so it is off by default. docs/experimental/pretraining.md has the figures
and the commands.
"""
