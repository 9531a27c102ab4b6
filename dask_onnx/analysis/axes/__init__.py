"""The algebra of axes: how every value of a graph depends on one axis of the inputs.

`dependence` has the data, `view` what a rule sees of a node, the ``*_rules`` modules the rules by
family, `table` the operator of each rule, and `propagate` composes them over a graph.
"""
