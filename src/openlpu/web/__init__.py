"""Results in, pages for people out."""
