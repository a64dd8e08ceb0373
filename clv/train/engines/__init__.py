"""The training back ends: plain torch or DeepSpeed."""
