import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import partial_of
from facd_basicsr.files.download import cached, download

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``CONTENT`` at every path, by the ranges that are asked for, and breaks off as often as it is told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.content = CONTENT
        self.validators = {'ETag': '"1"'}
        self.status = 200
        self.ranges_work = True
        self.sends_length = True
        self.breaks_after: list[int] = []  # bytes, for each request that is still to be cut short
        self.requests: list[tuple[str | None, str | None]] = []  # Range and If-Range

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}/file.bin'


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked, condition = self.headers['Range'], self.headers['If-Range']
        server.requests.append((asked, condition))
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if asked and server.ranges_work and condition in server.validators.values():
            start = int(asked.removeprefix('bytes=').removesuffix('-'))
        total = len(server.content)
        if start >= total:
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{total}')
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{total - 1}/{total}')
        if server.sends_length:
            self.send_header('Content-Length', str(total - start))
        for name, value in server.validators.items():
            self.send_header(name, value)
        self.end_headers()
        stop = start + server.breaks_after.pop(0) if server.breaks_after else total
        self.wfile.write(server.content[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server: Server, path: Path, sha256: str | None = None) -> list[float]:
    """Downloads, and returns the pauses that were made."""
    pauses: list[float] = []
    download(server.url, path, '--url', sha256, pause=pauses.append)
    return pauses


def offsets(server: Server) -> list[int]:
    return [int(asked.removeprefix('bytes=').removesuffix('-')) if asked else 0 for asked, _ in server.requests]


def test_a_download_is_whole_and_leaves_nothing_else_behind(server, tmp_path, capsys):
    path = tmp_path / 'new' / 'file.bin'
    assert fetch(server, path, SHA256) == []
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ['file.bin']
    captured = capsys.readouterr()
    assert 'file.bin: 1.00M of 1.00M in' in captured.err and captured.out == ''


def test_a_file_that_is_there_is_not_downloaded_again(server, tmp_path):
    (tmp_path / 'file.bin').write_bytes(b'mine')
    fetch(server, tmp_path / 'file.bin')
    with pytest.raises(UserError, match=rf'--url: .*file\.bin has sha256 [0-9a-f]{{64}}; accepted: {SHA256}; delete'):
        fetch(server, tmp_path / 'file.bin', SHA256)
    assert server.requests == [] and (tmp_path / 'file.bin').read_bytes() == b'mine'
    (tmp_path / 'file.bin').write_bytes(CONTENT)
    fetch(server, tmp_path / 'file.bin', SHA256[:8].upper())
    assert server.requests == []


@pytest.mark.parametrize(
    'validators', [{'ETag': '"7"'}, {'ETag': 'W/"7"', 'Last-Modified': 'Mon, 01 Jan 2024 00:00:00 GMT'}]
)
def test_a_connection_that_breaks_is_resumed_where_it_broke(server, tmp_path, validators):
    server.validators = validators
    server.breaks_after = [400_000, 300_000]
    assert fetch(server, tmp_path / 'file.bin', SHA256) == []  # each attempt brought something: no pause
    first, second, third = offsets(server)
    assert first == 0 and 300_000 < second <= 400_000 and second + 200_000 < third <= 700_000
    assert {condition for _, condition in server.requests[1:]} == {list(validators.values())[-1]}


def break_off(path: Path) -> None:
    """Leaves the first 400,000 bytes, as a killed process does."""
    partial_of(path).write_bytes(CONTENT[:400_000])
    partial_of(path).with_name(f'{partial_of(path).name}.version').write_text('"1"')


def test_another_run_resumes_and_the_bar_starts_there(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('facd_basicsr.progress.INTERVAL', 0)
    break_off(tmp_path / 'file.bin')
    fetch(server, tmp_path / 'file.bin', SHA256)
    assert server.requests == [('bytes=400000-', '"1"')]
    assert 'file.bin: 400k of 1.00M in' in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ['file.bin']


def test_a_changed_file_is_begun_anew(server, tmp_path):
    break_off(tmp_path / 'file.bin')
    server.validators = {'ETag': '"2"'}
    server.content = CONTENT[::-1]
    fetch(server, tmp_path / 'file.bin')
    assert (tmp_path / 'file.bin').read_bytes() == CONTENT[::-1] and len(server.requests) == 1


@pytest.mark.parametrize('changes', [{'ranges_work': False}, {'validators': {}}])
def test_without_ranges_or_versions_a_broken_download_is_begun_anew(server, tmp_path, changes):
    vars(server).update(changes)
    server.breaks_after = [400_000]
    fetch(server, tmp_path / 'file.bin', SHA256)
    assert len(server.requests) == 2


def test_what_was_whole_but_not_yet_renamed_is_taken(server, tmp_path):
    break_off(tmp_path / 'file.bin')
    (tmp_path / '.partial_file.bin').write_bytes(CONTENT)
    fetch(server, tmp_path / 'file.bin', SHA256)
    assert server.requests == [('bytes=1000000-', '"1"')]


def test_a_download_of_unknown_length_is_taken_as_it_comes(server, tmp_path):
    server.sends_length = False
    fetch(server, tmp_path / 'file.bin', SHA256)
    assert (tmp_path / 'file.bin').read_bytes() == CONTENT


def test_it_gives_up_after_attempts_that_bring_nothing_and_continues_later(server, tmp_path):
    server.breaks_after = [400_000, 0, 0, 0, 0, 0]
    pauses: list[float] = []
    with pytest.raises(UserError, match=r'--url: http.*gave up after 5 attempts, what arrived is kept, and the same'):
        download(server.url, tmp_path / 'file.bin', '--url', SHA256, pause=pauses.append)
    assert pauses == [1, 2, 4, 8] and not (tmp_path / 'file.bin').exists()
    fetch(server, tmp_path / 'file.bin', SHA256)
    assert offsets(server)[-1] > 300_000


def test_without_versions_a_server_that_always_breaks_off_is_given_up(server, tmp_path):
    server.validators = {}
    server.breaks_after = [400_000] * 9
    with pytest.raises(UserError, match=r'gave up after 5 attempts'):
        fetch(server, tmp_path / 'file.bin')


def test_an_http_error_is_refused_at_once(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match=r'--url: http://127\.0\.0\.1:\d+/file\.bin: the server answers 404 \w+'):
        fetch(server, tmp_path / 'file.bin')
    assert len(server.requests) == 1 and not (tmp_path / 'file.bin').exists()


def test_a_server_that_is_overloaded_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(UserError, match=r'the server answers 503 \w+.*; gave up after 5 attempts$'):
        fetch(server, tmp_path / 'file.bin')
    assert len(server.requests) == 5


def test_a_web_page_is_no_file(server, tmp_path):
    server.content = b'<html>log in</html>'
    server.validators = {'Content-Type': 'Text/HTML; charset=utf-8'}
    with pytest.raises(
        UserError, match=r'--url: .*file\.bin: the server answers with a web page, .*; accepted: a file$'
    ):
        fetch(server, tmp_path / 'file.bin')
    assert not (tmp_path / 'file.bin').exists()


def test_a_date_in_a_file_name_is_no_digest(server, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = server.url.replace('file.bin', 'swinir-20230415.pth')
    assert cached(url, 'teacher.weights', None).read_bytes() == CONTENT
    with pytest.raises(UserError, match=r'teacher.weights: http://\[::1: .*; accepted: an http:// or https:// address'):
        cached('http://[::1', 'teacher.weights', None)


def test_a_wrong_digest_removes_what_arrived(server, tmp_path):
    with pytest.raises(UserError, match=rf'--url: .*file\.bin has sha256 {SHA256}; accepted: 0123abcd; what the'):
        fetch(server, tmp_path / 'file.bin', '0123abcd')
    assert [file.name for file in tmp_path.iterdir()] == ['.file.bin.lock']


def test_a_server_that_is_not_there_is_one_line(server, tmp_path):
    server.server_close()
    with pytest.raises(UserError, match=r'^--url: http.*gave up after 5 attempts.*$'):
        fetch(server, tmp_path / 'file.bin')


def test_other_addresses_and_digests_are_refused(tmp_path):
    with pytest.raises(UserError, match=r'--url: ftp://a/b; accepted: an address that begins with http:// or https://'):
        download('ftp://a/b', tmp_path / 'b', '--url')
    with pytest.raises(UserError, match=r'--url: http:///b: '):
        download('http:///b', tmp_path / 'b', '--url')
    with pytest.raises(UserError, match=r"--url: sha256 '123'; accepted: 8 to 64 hexadecimal digits"):
        download('http://a/b', tmp_path / 'b', '--url', '123')


def test_a_disk_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / 'folder').write_text('a file')
    with pytest.raises(UserError, match=r'^--url: .*folder.*: .+; what arrived is kept, and the same command conti'):
        fetch(server, tmp_path / 'folder' / 'file.bin')


def test_of_several_at_once_one_downloads_and_the_others_wait(server, tmp_path):
    threads = [threading.Thread(target=fetch, args=(server, tmp_path / 'file.bin', SHA256)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1 and (tmp_path / 'file.bin').read_bytes() == CONTENT


def test_cached_files_lie_in_torch_hub_by_their_address(server, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    url = server.url.replace('file.bin', f'EDSR_Lx4-{SHA256[:8]}.pth?download=1')
    path = cached(url, 'teacher.weights', None)
    folder = hashlib.sha256(url.encode()).hexdigest()[:8]
    assert path == tmp_path / 'checkpoints' / 'facd_basicsr' / folder / f'EDSR_Lx4-{SHA256[:8]}.pth'
    assert path.read_bytes() == CONTENT
    assert cached(url, 'teacher.weights', SHA256) == path and len(server.requests) == 1
    with pytest.raises(UserError, match=r'teacher\.weights: .*EDSR-0123abcd\.pth has sha256 .*; accepted: 0123abcd'):
        cached(server.url.replace('file.bin', 'EDSR-0123abcd.pth'), 'teacher.weights', None)
    with pytest.raises(UserError, match=r'teacher\.weights: http://a/b/ names no file; accepted'):
        cached('http://a/b/', 'teacher.weights', None)
