"""Something that runs in, tokens out: requests, sampling, the engine's step, text, hashes, the check."""
