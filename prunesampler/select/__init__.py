"""From the scores of one pass to a certified selection."""
