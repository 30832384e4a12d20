"""A page that shows what was found: charts, samples and text, in one file that needs nothing else."""
