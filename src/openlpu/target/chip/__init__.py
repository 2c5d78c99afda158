"""The chip model: runs instruction queues cycle by cycle on real values, and refuses a wrong program."""
