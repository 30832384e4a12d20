"""The combinatorial problem, on arrays and budgets alone: which set of samples to prune."""
