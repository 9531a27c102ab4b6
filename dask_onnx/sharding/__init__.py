"""Plans in which the work or the weights of one request are split along a tensor axis."""
