"""The chart, and what of it is generated."""
