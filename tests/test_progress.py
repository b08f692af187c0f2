import io
import re
import sys

import pytest

from facd_basicsr import progress
from facd_basicsr.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize('desc', ['Set5', None])
def test_a_log_gets_lines_in_an_interval_and_no_redrawn_bars(capsys, monkeypatch, desc):
    now = 100.0
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now)
    with ProgressBar(total=4, desc=desc, unit='image', mininterval=0, dynamic_ncols=True) as bar:
        for _ in range(4):
            now += 20  # seconds, of which a line takes 30
            bar.update()
    begin = 'Set5: ' if desc else ''
    assert re.fullmatch(
        rf'{begin}2 of 4 in 00:00 .*image/s\), 00:00 left\n{begin}4 of 4 in 00:00 .*image/s\), 00:00 left\n',
        capsys.readouterr().err,
    )


def test_a_log_gets_a_last_line_of_what_has_a_title(capsys):
    list(ProgressBar(range(3), 'Set5'))
    assert re.fullmatch(r'Set5: 3 of 3 in 00:00 .*, 00:00 left\n', capsys.readouterr().err)


def test_what_is_over_soon_and_has_no_title_leaves_no_line_in_a_log(capsys):
    for _ in ProgressBar(range(3)):
        ProgressBar.write('a.png: no alpha', file=sys.stderr)
    assert capsys.readouterr().err == 'a.png: no alpha\n' * 3


def test_a_description_stands_once_before_its_colon(capsys, monkeypatch):
    monkeypatch.setattr(progress, 'INTERVAL', 0)
    with ProgressBar(total=2) as bar:
        bar.set_description('Test 5')
    assert capsys.readouterr().err.splitlines()[-1].startswith('Test 5: 0 of 2 in ')


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    list(ProgressBar(range(3), 'Set5'))
    assert '\rSet5: 100%|' in sys.stderr.getvalue() and sys.stderr.getvalue().endswith('\n')
