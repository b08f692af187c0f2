"""Tables of a comparison inside Markdown pages, between marks that only this file writes between."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from facd_basicsr.comparison.report import PARTS
from facd_basicsr.errors import UserError

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


def filled(page: str, results: Mapping[str, Any]) -> str:
    """The page with every block of this comparison made anew.

    A block begins with a line ``<!-- facd compare: NAME PART -->``, PART being one of :data:`PARTS`, and ends with
    ``<!-- end -->``.

    Args:
        page: Markdown.
        results: what results.json holds.

    Raises:
        UserError: the page has no block of this comparison, or one of an unknown part.
    """

    def content(found: re.Match) -> str:
        part = found['part']
        if part not in PARTS:
            raise UserError(f'<!-- facd compare: {results["name"]} {part} -->: accepted: {", ".join(PARTS)}')
        return PARTS[part](results)

    text, count = with_blocks(page, rf'<!-- facd compare: {re.escape(results["name"])} (?P<part>\S+) -->', content)
    if count == 0:
        raise UserError(
            f'no block of the comparison {results["name"]}; accepted: a page with a line '
            f'<!-- facd compare: {results["name"]} quality --> and after it {END}'
        )
    return text
