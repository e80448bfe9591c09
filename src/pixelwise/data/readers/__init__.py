"""One reader per format; each has `open_split(place, config)` that gives a `Source`."""
