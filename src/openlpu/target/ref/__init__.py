"""The reference target: the integer graph, operator by operator, in NumPy.  Obvious before fast."""
