"""Adapters (experimental): few trained weights in a frozen, pretrained backbone; LoRA, AdaLoRA, (IA)3, prefix,
bottleneck.

On the project's benchmark (one shop, one seed) they need a quarter to a third less memory between steps than full
tuning at equal quality, and one encoder of 3.4 MB serves many tasks with 14 to 217 KB of adapters for each; leaving the
backbone frozen without any adapter is as good. docs/experimental/adapters.md has the figures and the commands.
"""
