"""The training loop's side: when to select, when to redraw, and what to warn about."""
