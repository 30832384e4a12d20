"""The sampler of the kept samples, and functions that inspect the loaders around it."""
