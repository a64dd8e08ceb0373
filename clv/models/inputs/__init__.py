"""From a cut of histories to padded tensors."""
