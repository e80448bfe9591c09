"""Pure functions of tensors: no parameters, no configuration. Import from the modules."""
