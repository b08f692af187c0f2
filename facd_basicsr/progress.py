"""Progress: tqdm's bar in a terminal, lines in a log."""

import sys
import time
from typing import Any

from tqdm import tqdm

INTERVAL = 30  # seconds between lines
LINE = '{desc}: {n_fmt} of {total_fmt} in {elapsed} ({rate_fmt}), {remaining} left'


class ProgressBar(tqdm):
    """tqdm's bar on stderr. Where that is no terminal, a line every 30 seconds, and if it has a title one at the end: a
    bar fills a log with its redrawings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._in_lines = not sys.stderr.isatty()
        self._written, self._written_n = time.monotonic(), -1.0
        if self._in_lines:
            kwargs = {'bar_format': LINE, **kwargs, 'leave': False}  # there is nothing to be redrawn at the end
        super().__init__(*args, **{**kwargs, 'file': sys.stderr})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]
        """Redraws the bar, or writes a line if it is time for one."""
        if not self._in_lines:
            return super().display(msg, pos)  # type: ignore[return-value]
        if msg is None and time.monotonic() - self._written >= INTERVAL:
            self._write_line()
        return False

    def _write_line(self) -> None:
        self._written, self._written_n = time.monotonic(), self.n
        line = self.format_meter(**{**self.format_dict, 'prefix': (self.desc or '').removesuffix(': ')})
        self.fp.write(f'{line}\n')
        self.fp.flush()

    def close(self) -> None:
        """Ends the bar, or writes the last line."""
        if self._in_lines and not self.disable and self.desc and self.n != self._written_n:
            self._write_line()
        super().close()

    def clear(self, nolock: bool = False) -> None:
        """Makes room for other output; lines need none."""
        if not self._in_lines:
            super().clear(nolock)
