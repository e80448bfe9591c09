"""Metrics that stream: update per picture, merge across processes, compute once."""
