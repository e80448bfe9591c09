"""Modules with learnable parameters, one named mechanism per file. Import from the modules."""
