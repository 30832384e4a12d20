"""One pass over the data with a model. It knows models and datasets, but no budget."""
