"""Training arithmetic: plain torch and DeepSpeed, no Ray."""
