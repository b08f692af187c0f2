"""Updates the line numbers of links from a page to code.

    python docs/code_lines.py docs/*.md

The link's text names the target: ``[image.py, image_loss](...)`` is that function or class,
``[image.py, image_loss: to_teacher](...)`` the lines from the first to the last assignment of that variable, and
``[image.py, image_loss: return](...)`` its last return statement. tests/test_losses_page.py fails on stale lines.
"""

import argparse
import ast
import re
from pathlib import Path

from facd_basicsr.errors import UserError, run_command

LINK = re.compile(
    r'\[(?P<file>\w+\.py), (?P<name>[\w.]+)(?:: (?P<part>\w+))?\]\((?P<path>[^)#\s]+\.py)(?:#L\d+(?:-L\d+)?)?\)'
)
ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
Definition = ast.FunctionDef | ast.ClassDef


def with_lines(page: str, folder: Path) -> str:
    """The page with updated lines in every link to code.

    Args:
        page: Markdown.
        folder: the page's folder, which its links are relative to.

    Raises:
        UserError: a link names a missing file, definition or part.
    """

    def link(found: re.Match) -> str:
        path = folder / found['path']
        if path.name != found['file'] or not path.is_file():
            raise UserError(f'{found[0]}: no such file; accepted: a path from {folder} to {found["file"]}')
        first, last = _lines(ast.parse(path.read_text(encoding='utf-8')), found['name'], found['part'], found[0])
        return f'{found[0].split("](")[0]}]({found["path"]}#L{first}{"" if first == last else f"-L{last}"})'

    return LINK.sub(link, page)


def _lines(tree: ast.Module, name: str, part: str | None, link: str) -> tuple[int, int]:
    definition: ast.Module | Definition = tree
    for step in name.split('.'):
        inside = {node.name: node for node in definition.body if isinstance(node, Definition)}
        if step not in inside:
            raise UserError(f'{link}: no {step}; accepted: {", ".join(inside)}')
        definition = inside[step]
    if part is None:
        return definition.lineno, definition.end_lineno
    parts = _parts(definition)
    if part not in parts:
        raise UserError(f'{link}: no {part} in {name}; accepted: {", ".join(parts)}')
    return parts[part]


def _parts(definition: ast.AST) -> dict[str, tuple[int, int]]:
    """{variable: first and last line of its assignments}, and ``return``: lines of the last return statement."""
    assigned: dict[str, tuple[int, int]] = {}
    statements = (node for node in ast.walk(definition) if isinstance(node, (*ASSIGNMENTS, ast.Return)))
    for statement in sorted(statements, key=lambda node: node.lineno):
        if isinstance(statement, ast.Return):
            assigned['return'] = statement.lineno, statement.end_lineno
            continue
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            for name in (node.id for node in ast.walk(target) if isinstance(node, ast.Name)):
                assigned[name] = assigned.get(name, (statement.lineno,))[0], statement.end_lineno
    return assigned


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('pages', type=Path, nargs='+')
    for path in arguments.parse_args().pages:
        page = path.read_text(encoding='utf-8')
        path.write_text(with_lines(page, path.parent), encoding='utf-8')


if __name__ == '__main__':
    run_command(main)
