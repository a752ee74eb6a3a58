"""How often Horovod was initialized: counted as soon as this module is imported.

Rank and size may be the same after ``hvd.init`` as before, and the workers others. Each call of it, whoever has got
hold of the function, calls one in Horovod's module, which is replaced here.
"""

from __future__ import annotations

import functools
from typing import Any

from horovod.common import basics

_count = 0


def initialized() -> int:
    """Return how often Horovod was initialized since this module was imported."""
    return _count


def _counting(original: Any) -> Any:
    @functools.wraps(original)
    def init_process_sets(*args: Any) -> Any:
        global _count
        _count += 1
        return original(*args)

    return init_process_sets


basics._init_process_sets = _counting(basics._init_process_sets)
