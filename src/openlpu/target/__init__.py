"""A graph or a program in; something that runs out."""
