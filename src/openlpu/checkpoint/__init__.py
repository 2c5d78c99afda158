"""A model on disk in; configuration, named memory-mapped tensors and a tokenizer out."""
