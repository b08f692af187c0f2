from pathlib import Path

import coverage_page
import pytest

from facd_basicsr.errors import UserError


def entry(statements: int, lines: int, branches: int, taken: int) -> dict[str, dict[str, int]]:
    return {'summary': dict(zip(coverage_page.COUNTS, (statements, lines, branches, taken)))}


REPORT = {
    'files': {
        'facd_basicsr/train.py': entry(60, 54, 20, 18),
        'facd_basicsr/losses/facd_loss.py': entry(30, 30, 10, 10),
        'facd_basicsr/losses/vgg.py': entry(10, 0, 0, 0),
        'facd_cli.py': entry(20, 16, 0, 0),
    },
    'totals': entry(120, 100, 30, 28)['summary'],
}


def test_rooms_and_all_have_their_share_of_statements_and_branches():
    assert coverage_page.table(REPORT).splitlines()[2:] == [
        '| `facd_cli.py` | 20 | 0 | 80.0 % |',
        '| `facd_basicsr` | 60 | 20 | 90.0 % |',
        '| `facd_basicsr/losses` | 40 | 10 | 80.0 % |',
        '| all | 120 | 30 | 85.3 % |',
    ]


def test_the_blocks_of_every_page_are_made_anew_and_the_rest_is_kept(tmp_path):
    pages = [tmp_path / 'a.md', tmp_path / 'b.md']
    pages[0].write_text('before\n<!-- coverage: total -->\nold\n<!-- end -->\nafter\n')
    pages[1].write_text('<!-- coverage: rooms -->\n<!-- end -->\n')
    coverage_page.fill(pages, REPORT)
    text = pages[0].read_text()
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'old' not in text
    assert '`make test` runs 85 % of the statements and branches' in text
    assert coverage_page.table(REPORT) in pages[1].read_text()


@pytest.mark.parametrize(
    ('text', 'message'),
    [('nothing\n', r'page\.md: no block'), ('<!-- coverage: lines -->\n<!-- end -->\n', r'accepted: total, rooms')],
)
def test_a_page_without_a_block_and_an_unknown_part_are_refused(text, message, tmp_path):
    page: Path = tmp_path / 'page.md'
    page.write_text(text)
    with pytest.raises(UserError, match=message):
        coverage_page.fill([page], REPORT)
    assert page.read_text() == text
