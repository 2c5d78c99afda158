"""A layout and a graph in; instructions at cycles out."""
