"""Tables of a comparison inside Markdown pages."""

import re
from collections.abc import Mapping
from typing import Any

from facd_basicsr.comparison.report import PARTS
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.page_blocks import END, with_blocks


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
