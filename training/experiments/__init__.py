"""Ablation, cross-validation, trade-offs, shortcuts, and the record of all runs."""
