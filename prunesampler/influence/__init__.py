"""From measured samples to their influence on the parameters: tensors in, tensors out."""
