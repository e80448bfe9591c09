"""Losses with one value per element; the caller reduces. Import from the modules."""
