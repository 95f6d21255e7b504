"""What a folder of files held when it was made, so that whoever reads it later sees what is no longer so."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

from nullrec_lib.files import DamagedFile, read_json, write_json

FILE = "checksums.json"
AGAIN = f"make it again, or remove {FILE} if it was changed on purpose"


def sign(folder: Path) -> None:
    """Write down the CRC-32 of every file in a folder and below."""
    folder = Path(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    write_json(folder / FILE, {"crc32": {name: _crc32(folder / name) for name in names}})


def check(folder: Path, again: str = AGAIN) -> None:
    """Compare a folder with what was written down; one without that, or with more files, is taken as it is.

    Args:
        again: what to do when it is damaged, as a clause.

    Raises:
        DamagedFile: a file is missing or is not what it was.
    """
    folder = Path(folder)
    if not (folder / FILE).exists():
        return
    content = read_json(folder / FILE, again=again)
    if not isinstance(content, dict) or not isinstance(content.get("crc32"), dict):
        return  # another program's
    for name, crc in content["crc32"].items():
        if not (folder / name).is_file():
            raise DamagedFile(f"{folder / name}: is missing; {again}.")
        if _crc32(folder / name) != crc:
            raise DamagedFile(f"{folder / name}: is damaged (its content does not match {FILE}); {again}.")


def signed(folder: Path) -> bool:
    """Whether a folder is there with all that was written down of it."""
    try:
        check(folder)
    except DamagedFile:
        return False
    return (Path(folder) / FILE).exists()


def _crc32(path: Path) -> str:
    about = path.stat()
    return _of_file(path, about.st_mtime_ns, about.st_size, about.st_ino)


@lru_cache(maxsize=4096)
def _of_file(path: Path, *changed: int) -> str:
    # Kept while the file is unchanged: a table asks for every row, and weights are large.
    crc = 0
    with path.open("rb") as opened:
        while piece := opened.read(2**22):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"
