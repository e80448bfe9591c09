"""Feature extractors: the papers' own, and any of timm's by name."""
