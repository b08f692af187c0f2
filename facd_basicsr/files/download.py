"""Downloads that resume; a file gets its name when it is complete and verified."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
import torch
from filelock import FileLock

from facd_basicsr.errors import UserError, one_line
from facd_basicsr.files.atomic import PARTIAL, fsync_directory, partial_of
from facd_basicsr.progress import ProgressBar

ATTEMPTS = 5  # in a row without progress
TIMEOUT = 30.0  # seconds without a byte
TRANSIENT = (429, 500, 502, 503, 504)  # worth another attempt
PAGE_REASONS = 'perhaps one that asks to log in or says that there is no such file'
DIGEST = '[0-9a-fA-F]{8,64}'  # a SHA-256, or its beginning
CHUNK = 2**16  # bytes, lost at most by a broken connection
KEPT = 'what arrived is kept, and the same command continues'


def download(
    url: str, path: Path, where: str, sha256: str | None = None, pause: Callable[[float], object] = time.sleep
) -> None:
    """Downloads ``url`` to ``path`` unless it exists, resuming an earlier call.

    Several processes may ask for the same ``path``: one downloads, the others wait for it.

    Args:
        sha256: the digest of the file in hexadecimal, or its first 8 digits or more; also checked if the file
            exists.
        pause: waits that many seconds before connecting again, after an attempt that brought nothing.

    Raises:
        UserError: the address is not http or https, the server refuses or does not answer, the digest differs, or
            the disk is full.
    """
    if not is_url(url):
        raise UserError(f'{where}: {url}; accepted: an address that begins with http:// or https://')
    if sha256 is not None and not re.fullmatch(DIGEST, sha256):
        raise UserError(f'{where}: sha256 {sha256!r}; accepted: 8 to 64 hexadecimal digits')
    lock = path.with_name(f'.{path.name}.lock')
    part = partial_of(path)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                if not path.exists():
                    _fetch(url, part, where, pause)
                    _verify(part, path, where, sha256)
                    part.replace(path)
                    fsync_directory(path.parent)
                    _forget(part)
                    lock.unlink(missing_ok=True)
                    return
        _verify(path, path, where, sha256)
    except OSError as error:
        raise UserError(f'{where}: {error.filename or path}: {error.strerror or error}; {KEPT}') from error


def is_url(text: str) -> bool:
    """Whether it is an address, not a path."""
    return text.startswith(('http://', 'https://'))


def local_path(path: str) -> Path:
    """A path of an option file, ``~`` expanded; as it is where no user has that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def sha256_of(path: Path) -> str:
    """A file's digest in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def cached(url: str, where: str, sha256: str | None) -> Path:
    """The file that ``url`` names, downloaded into torch.hub's folder (``TORCH_HOME``) when it is asked for first.

    Args:
        sha256: as in :func:`download`; None: the digits that the file name carries by torch.hub's convention, such as
            ``EDSR_Lx4-76ee1c8f.pth``, if it does.

    Raises:
        UserError: as :func:`download`, or the address names no file.
    """
    path = cached_path(url, where)
    carried = re.search(r'-([0-9a-f]{8,64})\.[^.]+$', path.name)
    if sha256 is None and carried and not carried[1].isdecimal():  # 20230415 is a date
        sha256 = carried[1]
    download(url, path, where, sha256)
    return path


def cached_path(url: str, where: str) -> Path:
    """Where :func:`cached` puts the file of ``url``, whether it exists or not.

    Raises:
        UserError: the address names no file.
    """
    try:
        name = Path(unquote(urlsplit(url).path)).name
    except ValueError as error:
        raise UserError(f'{where}: {url}: {error}; accepted: an http:// or https:// address') from error
    if not name or '\0' in name or urlsplit(url).path.endswith('/'):
        raise UserError(f'{where}: {url} names no file; accepted: an address that ends in a file name')
    folder = hashlib.sha256(url.encode()).hexdigest()[:8]  # files of several sites may have the same name
    return Path(torch.hub.get_dir()) / 'checkpoints' / 'facd_basicsr' / folder / name


def _fetch(url: str, part: Path, where: str, pause: Callable[[float], object]) -> None:
    """Completes ``part``, however often the connection breaks, as long as each attempt makes progress."""
    most = _size(part)
    fruitless = 0
    while True:
        try:
            if _attempt(url, part, where):
                return
            reason = 'the connection was closed early'
        except (requests.exceptions.InvalidURL, requests.TooManyRedirects, requests.exceptions.InvalidSchema) as error:
            raise UserError(f'{where}: {url}: {error}') from error
        except requests.RequestException as error:
            reason = _reason(error)
        fruitless = 0 if _size(part) > most else fruitless + 1
        most = max(most, _size(part))
        if fruitless == ATTEMPTS:
            kept = f', {KEPT}' if _size(part) else ''
            raise UserError(f'{where}: {url}: {reason}; gave up after {ATTEMPTS} attempts{kept}')
        if fruitless:
            pause(2.0**fruitless / 2)


def _reason(error: requests.RequestException) -> str:
    """What broke, without the address and the chain of causes that urllib3 prints."""
    if isinstance(error, requests.Timeout):
        return f'no answer for {TIMEOUT:.0f} s'
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return 'the connection broke'
    if isinstance(error, requests.ConnectionError):
        innermost: BaseException = error
        while innermost.__context__ is not None:
            innermost = innermost.__context__
        return f'no connection ({getattr(innermost, "strerror", None) or type(innermost).__name__})'
    return one_line(error)


def _attempt(url: str, part: Path, where: str) -> bool:
    """Requests what ``part`` lacks, or all of it if the file may have changed. Returns whether it is complete.

    Raises:
        requests.RequestException: the connection broke.
        UserError: the server answered with an error.
    """
    version = _version_of(part)
    validator = version.read_text(encoding='latin-1') if version.is_file() else ''
    start = _size(part) if validator else 0
    headers = {'Accept-Encoding': 'identity'}  # else lengths would be of what is compressed
    if start:
        headers |= {'Range': f'bytes={start}-', 'If-Range': validator}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if start and response.status_code == 416:  # the part is complete, or the file has changed
            whole = re.fullmatch(r'bytes \*/(\d+)', response.headers.get('Content-Range', ''))
            if whole and int(whole[1]) == start:
                return True
            _forget(part)
            return False
        if response.status_code in TRANSIENT:
            raise requests.RequestException(f'the server answers {response.status_code} {response.reason}'.rstrip())
        if response.status_code not in (200, 206):
            status = f'{response.status_code} {response.reason}'.rstrip()
            raise UserError(f'{where}: {url}: the server answers {status}; accepted: the address of a file')
        if response.headers.get('Content-Type', '').lower().startswith('text/html'):
            raise UserError(f'{where}: {url}: the server answers with a web page, {PAGE_REASONS}; accepted: a file')
        resumed = re.fullmatch(r'bytes (\d+)-\d+/(\d+)', response.headers.get('Content-Range', ''))
        if response.status_code == 206 and not (resumed and int(resumed[1]) == start):
            _forget(part)
            return False
        if response.status_code == 200 or start == 0:
            start = 0
            _forget(part)
            etag = response.headers.get('ETag', '')
            if not etag or etag.startswith('W/'):  # a weak ETag promises the same meaning, not the same bytes
                etag = response.headers.get('Last-Modified', '')
            version.write_text(etag, encoding='latin-1')
        length = resumed[2] if resumed else response.headers.get('Content-Length')
        total = None if length is None else int(length)
        with (
            part.open('ab') as file,
            ProgressBar(
                total=total,
                initial=start,
                desc=part.name.removeprefix(PARTIAL),
                unit='B',
                unit_scale=True,
            ) as bar,
        ):
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    return total is None or _size(part) == total


def _verify(file: Path, path: Path, where: str, sha256: str | None) -> None:
    """Checks the digest of ``path``, or of its temporary file, which is deleted if it is another one."""
    if sha256 is None:
        return
    digest = sha256_of(file)
    if not digest.startswith(sha256.lower()):
        advice = 'delete it to download it again'
        if file != path:
            _forget(file)
            advice = 'what the server sent was deleted'
        raise UserError(f'{where}: {path} has sha256 {digest}; accepted: {sha256.lower()}; {advice}')


def _version_of(part: Path) -> Path:
    """The file with the version (ETag) of the remote file that ``part`` is of."""
    return part.with_name(f'{part.name}.version')


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_of(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
