"""All cases of single nodes, by `kernel_case.Case`."""

from __future__ import annotations

from collections.abc import Iterator

import image_cases
import learning_cases
import tensor_cases
import typed_cases
from kernel_case import Case, restart


def all_cases() -> Iterator[Case]:
    """Yield all cases, always the same."""
    restart()
    for module in (image_cases, tensor_cases, typed_cases, learning_cases):
        for cases in module.CASES:
            yield from cases()
