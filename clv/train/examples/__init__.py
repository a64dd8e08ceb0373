"""Training examples: drawn from memory or from storage, and fed to the engine."""
