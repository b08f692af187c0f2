"""Tables of a comparison inside Markdown pages, between marks that only this file writes between."""

import re
from collections.abc import Mapping
from typing import Any

from facd_basicsr.comparison.report import PARTS
from facd_basicsr.errors import UserError

END = '<!-- end -->'


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
    begin = rf'<!-- facd compare: {re.escape(results["name"])} (\S+) -->\n'

    def block(found: re.Match) -> str:
        part = found[1]
        if part not in PARTS:
            raise UserError(f'<!-- facd compare: {results["name"]} {part} -->: accepted: {", ".join(PARTS)}')
        return f'<!-- facd compare: {results["name"]} {part} -->\n\n{PARTS[part](results)}\n\n{END}'

    text, count = re.subn(rf'{begin}.*?{END}', block, page, flags=re.DOTALL)
    if count == 0:
        raise UserError(
            f'no block of the comparison {results["name"]}; accepted: a page with a line '
            f'<!-- facd compare: {results["name"]} quality --> and after it {END}'
        )
    return text
