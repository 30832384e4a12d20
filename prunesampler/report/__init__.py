"""What the other rooms found, in words and pictures."""
