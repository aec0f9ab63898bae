"""Measure masks against references, and what moves them."""
