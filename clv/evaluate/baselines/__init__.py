"""The models that a back-test must beat, each refitted at the origin."""
