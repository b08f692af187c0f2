"""Writes a benchmark's JSON file after each of its parts, within a time limit."""

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from facd_basicsr.files.atomic import atomic_write

LIMIT = 450  # seconds; keeps each part of `make benchmarks` within 8 minutes


class Recorder:
    """Saves results and ends the process at the time limit.

    The file is written atomically. Its ``missing`` lists the parts that were not measured.

    Args:
        path: the JSON file.
        parts: names of all parts.
        limit: seconds until the process ends, with exit code 0 if any part was written.
    """

    def __init__(self, path: Path, parts: Iterable[str], limit: int = LIMIT) -> None:
        self._path, self._missing, self._exit_code = path, list(parts), 1
        self._limit = limit
        path.parent.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGALRM, self._end)
        signal.alarm(limit)

    def write(self, part: str, results: dict[str, Any]) -> None:
        """Writes all results so far; ``part`` is complete."""
        self._missing.remove(part)
        content = json.dumps({'missing': self._missing, **results}, indent=1) + '\n'
        atomic_write(self._path, content.encode())
        self._exit_code = 0
        if not self._missing:
            signal.alarm(0)

    def _end(self, *_: Any) -> None:
        print(f'{self._limit} s time limit reached; missing: {"; ".join(self._missing)}', flush=True)
        os._exit(self._exit_code)  # an exception could be caught, e.g. by torch.compile
