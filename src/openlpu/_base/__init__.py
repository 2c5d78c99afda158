"""What every folder may use: errors, the lazy registry, units, the one stable text printer."""
