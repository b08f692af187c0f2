"""Zip archives, unpacked so that an interrupted run leaves no half file and is continued by the next."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from facd_basicsr.errors import UserError


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip archive into ``folder``. Files that are there already with their full size are kept.

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
            for member in tqdm(members, desc=archive.name, unit='file'):
                _unpack_member(zipped, member, folder / member.filename)
    except FileNotFoundError as error:
        raise UserError(f'{archive}: no such file') from error
    # the last two are zipfile's for a compression that it does not know, and for an encrypted member
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f'{archive}: damaged or no zip archive ({" ".join(str(error).split())}); delete it to get it again'
        ) from error


def _unpack_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    if path.is_file() and path.stat().st_size == member.file_size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.partial_{path.name}')
    with zipped.open(member) as source, partial.open('wb') as target:  # reading to the end checks the CRC
        shutil.copyfileobj(source, target, 2**20)
    partial.replace(path)
