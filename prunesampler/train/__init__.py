"""What touches a training loop: when to select, when to redraw, and what to warn of."""
