"""Facts about a graph: who feeds whom, shapes, costs, axes. Never runs a session."""
