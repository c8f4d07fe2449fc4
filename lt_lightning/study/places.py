"""Where a result is: a folder named by a hash of what determines it, so that it is found again and not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Raised when a change of the algorithms makes earlier results differ from what would come out now.
ALGORITHM = 1


def hash_of(what: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits for what determines a result: JSON values, in any order.

    >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps({"algorithm": ALGORITHM, **what}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
