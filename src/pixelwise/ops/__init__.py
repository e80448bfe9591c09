"""Pure functions: tensors in, tensors out; no parameters, no configuration. Import from the modules."""
