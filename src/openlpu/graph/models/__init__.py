"""One file per architecture, found by its Hugging Face ``model_type``."""
