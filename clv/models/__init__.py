"""The customer model: inputs, backbones, heads and losses, with adapters and pretraining; torch without Ray."""
