"""Memory that the submodels of a sequence plan need."""

from __future__ import annotations

from collections import defaultdict

from dask_onnx.analysis.cost import value_bytes
from dask_onnx.sharding.segments import Form, Segment, SegmentPlan, forms_of


def working_bytes(plan: SegmentPlan, segment: Segment) -> int:
    """Return the peak bytes of inputs and intermediate values of one task."""
    last: dict[Form, int] = {}
    for place, instance in enumerate(segment.instances):
        last.update(dict.fromkeys(forms_of(plan, instance), place))
    ends: defaultdict[int, list[Form]] = defaultdict(list)
    for form, place in last.items():
        ends[place].append(form)
    seen: set[Form] = set()
    alive = most = 0
    for place, instance in enumerate(segment.instances):
        new = set(forms_of(plan, instance)) - seen
        seen |= new
        alive += sum(form_bytes(plan, form) for form in new)
        most = max(most, alive)
        alive -= sum(form_bytes(plan, form) for form in ends[place])
    return most


def form_bytes(plan: SegmentPlan, form: Form) -> int:
    """Return the bytes of a value or of its largest shard; 0 for a weight."""
    name, layout = form
    if not name or name in plan.candidates.facts.initializers:
        return 0
    size = value_bytes(plan.candidates.specs.get(name))
    if layout is None or layout.combine:
        return size
    return size * max(plan.bounds.sizes) // max(plan.bounds.positions, 1)
