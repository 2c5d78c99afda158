"""A workload in; which hardware, how many, how fast and at what cost out, and how far such answers can be trusted."""
