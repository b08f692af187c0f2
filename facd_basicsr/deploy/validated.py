"""What the log of a training says of the quality of its checkpoints."""

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

from facd_basicsr.deploy.student import option_files_of_run
from facd_basicsr.options.parse import read_options

RECORD = re.compile(r'^\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+: ', re.MULTILINE)  # the beginning of each
VALIDATION = 'Validation '  # of a record; the set follows, then a line for each metric


def psnr_of(checkpoint: Path) -> dict[str, float]:
    """{set: PSNR-Y in dB} of ``experiments/NAME/models/net_g_*.pth``, as far as the run's log says it for certain.

    The loop validates right after it has saved ``net_g_latest``, and right before ``net_g_best``. Of a numbered
    checkpoint the log has the iteration if it is a set's best so far. Empty for other files, and where no metric of
    the run is ``calculate_psnr`` with ``test_y_channel``.

    Raises:
        UserError: the option file in the run's folder can't be read.
    """
    option_files = option_files_of_run(checkpoint)
    metric = _psnr_y(option_files[0]) if len(option_files) == 1 else None
    if metric is None:
        return {}
    records = _records(option_files[0].parent)
    name, figure = checkpoint.stem.removeprefix('net_g_'), rf'# {re.escape(metric)}: '
    if name.isdigit():
        return _figures(records, rf'{figure}.*Best: (\S+) @ {name} iter')
    if name not in SAVED_AT:
        return {}
    beginning, validations = SAVED_AT[name]
    places = [place for place, record in enumerate(records) if record.startswith(beginning)]
    return _figures(validations(places[-1], records), rf'{figure}(\S+)') if places else {}


def _psnr_y(option_file: Path) -> str | None:
    """The name of the metric that is PSNR-Y; the first if there are several."""
    metrics = (read_options(str(option_file), []).get('val') or {}).get('metrics') or {}
    found = (name for name, opt in metrics.items() if opt.get('type') == 'calculate_psnr' and opt.get('test_y_channel'))
    return next(found, None)


def _records(run: Path) -> list[str]:
    logs = sorted(run.glob('train_*.log'))  # their names end in the time, one for each start
    return [record for log in logs for record in RECORD.split(log.read_text(encoding='utf-8', errors='replace'))[1:]]


def _right_after(place: int, records: Sequence[str]) -> list[str]:
    return list(takewhile(_is_validation, records[place + 1 :]))


def _right_before(place: int, records: Sequence[str]) -> list[str]:
    return list(takewhile(_is_validation, reversed(records[:place])))[::-1]


def _is_validation(record: str) -> bool:
    return record.startswith(VALIDATION)


def _figures(records: Iterable[str], pattern: str) -> dict[str, float]:
    """{set: what the pattern finds in its last validation}."""
    found = {}
    for record in records:
        if _is_validation(record):
            found[record.splitlines()[0].removeprefix(VALIDATION)] = re.search(pattern, record)
    return {name: float(match[1]) for name, match in found.items() if match}


# {which net_g_*: what the loop writes right before it saves it, where its validation is}
SAVED_AT = {'latest': ('Save the latest model.', _right_after), 'best': ('Saving the best models:', _right_before)}
