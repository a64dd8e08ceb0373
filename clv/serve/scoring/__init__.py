"""A loaded bundle behind a batcher."""
