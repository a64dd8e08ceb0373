"""The columnar side of the library: specs, intake, histories, windows. No torch, no Ray."""
