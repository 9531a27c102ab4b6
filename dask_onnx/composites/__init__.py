"""Several models as one: side by side on the same inputs, or one after the other."""
