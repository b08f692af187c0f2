"""A benchmark's JSON file, written anew after each part of it."""

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from facd_basicsr.files.atomic import atomic_write

LIMIT = 450  # seconds; with Python's start a part of `make benchmarks` ends within 8 minutes


class Recorder:
    """Keeps what is measured, and ends the process when its time is over.

    The file is whole at any time. Its ``missing`` names the parts that are not in it.

    Args:
        path: of the JSON file.
        parts: all that is to be measured.
        limit: seconds until the process ends, with exit code 0 if any part is written.
    """

    def __init__(self, path: Path, parts: Iterable[str], limit: int = LIMIT) -> None:
        self._path, self._missing, self._exit_code = path, list(parts), 1
        self._limit = limit
        path.parent.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGALRM, self._end)
        signal.alarm(limit)

    def write(self, part: str, results: dict[str, Any]) -> None:
        """All results so far, of which a part has become complete."""
        self._missing.remove(part)
        content = json.dumps({'missing': self._missing, **results}, indent=1) + '\n'
        atomic_write(self._path, content.encode())
        self._exit_code = 0
        if not self._missing:
            signal.alarm(0)

    def _end(self, *_: Any) -> None:
        print(f'{self._limit} s are over; missing: {"; ".join(self._missing)}', flush=True)
        os._exit(self._exit_code)  # an exception could be caught on its way, by torch.compile for one
