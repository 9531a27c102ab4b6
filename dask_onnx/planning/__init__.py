"""Stage graphs: what they are, how they are made, checked and drawn."""
