"""Reading, checking, transforming and batching annotated pictures."""
