"""DIV2K's training pairs, from its download to LMDBs."""

import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from facd_basicsr.data.lmdb_pairs import write_lmdbs
from facd_basicsr.data.record import are_finished
from facd_basicsr.errors import UserError, advising, one_line
from facd_basicsr.files.atomic import atomic_path
from facd_basicsr.files.download import download
from facd_basicsr.files.images import images_in, read_bgr
from facd_basicsr.progress import ProgressBar


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip archive into ``folder``. Existing files of full size are kept.

    Raises:
        UserError: no zip archive, a damaged one, or one with a link or a member outside ``folder``.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [member for member in zipped.infolist() if not member.is_dir()]
            for member in members:
                name = PurePosixPath(member.filename.replace('\\', '/'))
                if not name.name or name.is_absolute() or '..' in name.parts or ':' in name.parts[0]:
                    raise UserError(f'{archive}: names a file outside its folder ({member.filename}); not unpacked')
                if stat.S_ISLNK(member.external_attr >> 16):  # the file mode, where Unix made the archive
                    raise UserError(f'{archive}: holds a link ({member.filename}); not unpacked')
            for member in ProgressBar(members, desc=archive.name, unit='file'):
                path = folder / member.filename
                if path.is_file() and path.stat().st_size == member.file_size:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with (
                    zipped.open(member) as source,
                    atomic_path(path) as partial_file,
                    partial_file.open('wb') as target,
                ):
                    shutil.copyfileobj(source, target, 2**20)  # reading to the end checks the CRC
    except FileNotFoundError as error:
        raise UserError(f'{archive}: no such file') from error
    # the last two are zipfile's for a compression that it does not know, and for an encrypted member
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f'{archive}: damaged or no zip archive ({one_line(error)}); delete it to get it again'
        ) from error


OFFICIAL_URL = 'https://data.vision.ee.ethz.ch/cvl/DIV2K/'
HR = 'DIV2K_train_HR'
LR = 'DIV2K_train_LR_bicubic'
SHA256 = {  # as TensorFlow Datasets lists them
    f'{HR}.zip': '9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335',
    f'{LR}_X2.zip': 'a53a424317575838dadce4bcd97cf7b744d6855f43740ed5f0245af3cf4bd850',
    f'{LR}_X3.zip': 'ad5c8e5507e2765823d3c2c5bd0934842efcd487c5370604c224090898b3163a',
    f'{LR}_X4.zip': 'f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a',
}
IMAGES = 800
CROP, STEP = 480, 240  # BasicSR's


def prepare_div2k(scales: Sequence[int], out: Path, url: str, workers: int) -> None:
    """Writes ``DIV2K_train_HR_sub.lmdb`` and ``DIV2K_train_LR_bicubic_X{scale}_sub.lmdb`` into ``out``.

    The LR images are DIV2K's own, which published results were trained on.

    Args:
        scales: of 2, 3, 4.
        out: also takes the archives and the unpacked images, which are not needed afterwards.
        url: where the archives are; or a folder that holds them.

    Raises:
        UserError: a download or an archive fails, an LR image is not HR / scale large, or another output exists
            under that name.
    """
    paths = {1: out / f'{HR}_sub.lmdb', **{scale: out / f'{LR}_X{scale}_sub.lmdb' for scale in scales}}
    made_of = {'images': HR}
    if are_finished(paths.values(), {'crop': CROP, 'step': STEP, **made_of}):
        print(f'already there: {", ".join(map(str, paths.values()))}')
        return
    folders = {scale: out / LR / f'X{scale}' for scale in scales}
    for name, folder in ((HR, out / HR), *((f'{LR}_X{scale}', folder) for scale, folder in folders.items())):
        unpacked = folder / '.unpacked'
        if not unpacked.exists():
            unpack(_archive(f'{name}.zip', out, url), out)
            images_in(folder)
            unpacked.touch()
    images = len(images_in(out / HR))
    if images != IMAGES:
        print(f'{out / HR}: {images} images, where DIV2K has {IMAGES}', flush=True)
    sources = {hr.stem: partial(_read_pair, hr, folders) for hr in images_in(out / HR)}
    count = write_lmdbs(sources, paths, CROP, STEP, made_of, workers)
    print(f'{count} pairs: {", ".join(map(str, paths.values()))}')


def _archive(name: str, out: Path, url: str) -> Path:
    """An archive of DIV2K, downloaded unless it exists."""
    if '://' not in url:
        archive = Path(url) / name
        if not archive.is_file():
            raise UserError(f'--url: {url} has no {name}; accepted: a folder that holds it, or an http(s) address')
        return archive
    out.mkdir(parents=True, exist_ok=True)
    # a mirror may have repacked the images
    digest = SHA256[name] if url == OFFICIAL_URL else None
    with advising(f'put the archive into {out}, or name a mirror or a folder by --url (datasets/README.md)'):
        download(f'{url.rstrip("/")}/{name}', out / name, 'DIV2K', digest)
    return out / name


def _read_pair(hr_path: Path, lr_folders: dict[int, Path], scales: list[int]) -> dict[int, np.ndarray]:
    """HR and its LR images, 0001.png and X2/0001x2.png. HR's size must be exactly ``scale`` times each LR's."""
    hr = read_bgr(hr_path)
    versions = {}
    for scale in scales:
        path = hr_path if scale == 1 else lr_folders[scale] / f'{hr_path.stem}x{scale}.png'
        versions[scale] = hr if scale == 1 else read_bgr(path)
        height, width = versions[scale].shape[:2]
        if (height * scale, width * scale) != hr.shape[:2]:
            raise UserError(
                f'{path}: {width}x{height} pixels for an HR image of {hr.shape[1]}x{hr.shape[0]}; '
                f'accepted: exactly HR / {scale}'
            )
    return versions
