"""Contents on their way to a host's folder of an evaluation."""

import base64
import gzip
import json
from typing import Any

from fleet_controller.operations.problems import OperationError

# An agent takes messages of 16 MiB (agent/fleet_agent/server/app.py); MMLU-Pro in full is a third of that.
LARGEST_PACKED_CHARACTERS = 15_000_000


def packed(content: str | dict[str, Any]) -> str:
    """gzip in base64, the same for the same content. Raises OperationError where no agent would take it."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    found = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    if len(found) > LARGEST_PACKED_CHARACTERS:
        message = f"{len(found) / 1e6:.0f} MB are more than an agent takes at once"
        raise OperationError("too-large", message, "ask fewer questions, or name a shorter --corpus")
    return found
