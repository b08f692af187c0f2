"""Damage to an image file, as disks and interrupted copies do it."""

import os
from pathlib import Path


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def text(path: Path) -> None:
    path.write_text('no image')
