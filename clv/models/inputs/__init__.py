"""Inputs of the customer model: from histories cut at an origin to padded tensors of one batch."""
