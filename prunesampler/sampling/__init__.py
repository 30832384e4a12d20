"""What a loader iterates: the sampler of the kept samples, and loaders seen from outside."""
