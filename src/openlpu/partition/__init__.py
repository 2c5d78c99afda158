"""A graph and a split in; one graph per pipeline stage, exchanges included, out."""
