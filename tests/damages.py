"""Damage to image files, as from disk errors and interrupted copies."""

import os
from pathlib import Path


def truncate_to_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def make_empty(path: Path) -> None:
    os.truncate(path, 0)


def replace_by_text(path: Path) -> None:
    path.write_text('no image')
