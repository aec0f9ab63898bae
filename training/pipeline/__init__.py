"""The recipe as stages: which there are, and how one is run, resumed and skipped."""
