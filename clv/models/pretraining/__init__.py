"""What an encoder learns without labels, and how a model starts from it."""
