"""Blocks of Markdown pages, between marks that only a command writes between."""

import re
from collections.abc import Callable

END = '<!-- end -->'


def with_blocks(page: str, mark: str, content: Callable[[re.Match], str]) -> tuple[str, int]:
    """The page with what stands between the marks made anew, and the number of blocks.

    Args:
        page: Markdown.
        mark: a pattern of the line that begins a block, which ends with :data:`END`.
        content: what stands in the block whose first line has matched.
    """

    def block(found: re.Match) -> str:
        return f'{found["mark"]}\n\n{content(found)}\n\n{END}'

    return re.subn(rf'(?P<mark>{mark})\n.*?{END}', block, page, flags=re.DOTALL)
