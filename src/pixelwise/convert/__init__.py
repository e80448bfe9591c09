"""Checkpoints of other projects: rules as data, and one function that applies them."""
