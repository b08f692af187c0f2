"""Which file of a folder was made of which image by which student: what is finished is not made again."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from facd_basicsr.data.download import sha256_of
from facd_basicsr.data.record import files_of
from facd_basicsr.deploy.description import Description
from facd_basicsr.deploy.image_tree import Pair
from facd_basicsr.engine.whole_files import flush_folder, named, partial_of
from facd_basicsr.errors import UserError

RECORD = 'upscale.jsonl'
KEYS = {'file', 'image', 'student', 'sha256'}  # of a line
OVERWRITE = 'accepted: another --out, or --overwrite, which makes all files of this command again'


def student_id(path: Path, description: Description) -> dict[str, str]:
    """A student's name and what tells it from others: of its weights and what they are run as."""
    run_as = json.dumps([sha256_of(path), description.network, description.scale], sort_keys=True)
    return {'student': path.name, 'sha256': hashlib.sha256(run_as.encode()).hexdigest()}


class UpscaleRecord:
    """A file in a folder of upscaled images with a line of JSON for each; a later one on the same image counts.

    Several threads may use it.

    Args:
        folder: may not be there yet.
        student: from :func:`student_id`.
    """

    def __init__(self, folder: Path, student: dict[str, str]) -> None:
        self._folder, self._student = folder, student
        self._path = folder / RECORD
        self._lines = self._read()
        self._turn = Lock()

    def unfinished(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those whose files are not there, or made of an image that has changed since.

        Raises:
            UserError: a file is another student's, or nobody knows whose.
        """
        for pair in pairs:
            if not pair.target.exists():
                continue
            line = self._lines.get(self._name(pair))
            if line is None:
                raise UserError(f'--out: {pair.target} is there already, and not by this command; {OVERWRITE}')
            if line['sha256'] != self._student['sha256']:
                raise UserError(
                    f'--out: {pair.target} is there already, by another student or with another --opt '
                    f'({line["student"]}); {OVERWRITE}'
                )
        return [pair for pair in pairs if not (pair.target.exists() and self._is_of_the_image_as_it_is(pair))]

    def finish(self, pair: Pair, line: dict[str, Any], partial: Path) -> None:
        """Gives a file its name, after its line, so that no file is ever without one.

        Between the two the last line is of the new file and the name may be an older one's. What says so, also if the
        process is killed there, is the new file under its temporary name beside it.

        Args:
            line: from :meth:`line`, as it was when the image was read.
            partial: the file, all written, from :func:`facd_basicsr.engine.whole_files.write_partial`.

        Raises:
            OSError: the line can't be written, and only the older file and its line are left; or the file can't get
                its name, and keeps the temporary one.
        """
        try:
            with self._turn, self._path.open('a', encoding='utf-8') as file:
                file.write(json.dumps(line) + '\n')
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            partial.unlink()
            raise named(error, self._path) from error
        partial.replace(pair.target)
        flush_folder(pair.target.parent)

    def line(self, pair: Pair) -> dict[str, Any]:
        """What is recorded of a pair."""
        return {'file': self._name(pair), 'image': files_of([pair.source])[0], **self._student}

    def _is_of_the_image_as_it_is(self, pair: Pair) -> bool:
        interrupted = partial_of(pair.target).exists()  # the last line may not be this file's
        return not interrupted and self._lines[self._name(pair)]['image'] == self.line(pair)['image']

    def _name(self, pair: Pair) -> str:
        return pair.target.relative_to(self._folder).as_posix()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.exists():
            return {}
        content = self._path.read_bytes()
        if not content.endswith(b'\n'):  # a line that was cut short, which the next one must not join
            with self._path.open('a', encoding='utf-8') as file:
                file.write('\n')
        return {line['file']: line for line in map(_parsed, content.splitlines()) if line.keys() >= KEYS}


def _parsed(line: bytes) -> dict[str, Any]:
    """Empty of what :meth:`UpscaleRecord.finish` has not written, or not all of."""
    try:
        parsed = json.loads(line)
    except ValueError:  # no JSON, or no text
        return {}
    return parsed if isinstance(parsed, dict) and isinstance(parsed.get('file'), str) else {}
