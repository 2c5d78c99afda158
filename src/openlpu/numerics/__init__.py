"""Float operators in, integer operators out: which codes, which planes, which scales."""
