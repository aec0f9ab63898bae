"""The commands of `python -m training`, a module per group of its help."""
