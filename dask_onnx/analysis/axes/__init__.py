"""Dataflow analysis of axes: how every value of a graph depends on one axis of the inputs.

`dependence` defines the abstract values, `view` the node as a rule sees it, the ``*_rules`` modules
the transfer functions by operator family, `table` the rule of each operator, and `propagate`
applies the rules in topological order. `axis_report` turns the result into the public `AxisTable`.
It imports `core`, `modelio` and the lower modules of `analysis` only.
"""
