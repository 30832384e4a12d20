"""What is wrong with a pool of samples: near copies, suspect labels, samples that nobody wanted."""
