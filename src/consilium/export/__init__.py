"""Bundles in the forms of other libraries, with all that their own loading calls need."""
