"""Public files by name: fetched with resume, checked, unpacked within their folder."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import httpx

from nullrec_lib.errors import InputError
from nullrec_lib.files import DamagedFile, alone, atomic, read_json, write_json, write_text, writing
from nullrec_lib.progress import bar


@dataclass(frozen=True)
class File:
    """One file of a data set. `size` and `checksum` only where someone published them."""

    url: str
    size: int | None = None
    """Bytes."""
    checksum: str = ""
    """`sha256:<hex>`, `md5:<hex>`, or `md5` where the publisher keeps it at `url` + `.md5`."""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"

# MovieLens: sizes and SHA-256 as TensorFlow Datasets lists them (url_checksums/movielens.txt). The small set "may
# change over time" (its README), so it is held against the MD5 that GroupLens publishes at that moment.
# Amazon publishes neither.
SETS: dict[str, tuple[File, ...]] = {
    "movielens-100k": (File(f"{_GROUPLENS}/ml-100k.zip", 4_924_029,
                            "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"),),
    "movielens-1m": (File(f"{_GROUPLENS}/ml-1m.zip", 5_917_549,
                          "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"),),
    "movielens-latest-small": (File(f"{_GROUPLENS}/ml-latest-small.zip", checksum="md5"),),
    "amazon-2014-toys": (File(f"{_SNAP}/reviews_Toys_and_Games_5.json.gz"),
                         File(f"{_SNAP}/meta_Toys_and_Games.json.gz")),
    "amazon-2014-sports": (File(f"{_SNAP}/reviews_Sports_and_Outdoors_5.json.gz"),
                           File(f"{_SNAP}/meta_Sports_and_Outdoors.json.gz")),
    "amazon-2023-movies": (File(f"{_UCSD}/review_categories/Movies_and_TV.jsonl.gz"),
                           File(f"{_UCSD}/meta_categories/meta_Movies_and_TV.jsonl.gz")),
}
BY_HAND = {"yelp": "https://business.yelp.com/data/resources/open-dataset/"}

_UNPACKED_BYTES, _UNPACKED_RATIO = 2 * 2**30, 100
"""No archive of `SETS` comes near; one that declares more is not what it says it is."""


class _Again(Exception):
    """Worth another try: the connection was cut, the server is busy, or what was kept does not fit any more."""


def download(name: str, to: Path | None = None, mirror: str | None = None, attempts: int = 6) -> tuple[Path, list[str]]:
    """Fetch, check and unpack a set of `SETS`; what is finished is not fetched again, what was cut off goes on.

    Args:
        to: folder; default `$NULLREC_DATA/<name>`, or `data/<name>`.
        mirror: address that stands for scheme and host of the sources; their paths stay.
        attempts: at most, per file, with growing pauses.

    Returns: the folder, and one sentence per file with the SHA-256 that was received.

    Raises:
        InputError: unknown name, a set whose terms are accepted by hand, a server that refuses or keeps failing, or
            a file that is not what was published or received before (it is removed).
    """
    if name in BY_HAND:
        raise InputError(f"{name}: its owner wants the terms accepted by hand; do so at {BY_HAND[name]}, unpack the "
                         "files into a folder and give that as --data.")
    if name not in SETS:
        close = difflib.get_close_matches(name, [*SETS, *BY_HAND], n=1)
        raise InputError(f"download: {name!r} is not one of {', '.join([*SETS, *BY_HAND])}"
                         + (f"; the closest is {close[0]}." if close else "."))
    if mirror is not None and (urlsplit(mirror).scheme not in ("http", "https") or not urlsplit(mirror).netloc):
        raise InputError(f"mirror: {mirror!r} is not an address such as https://mirror.example/path.")
    folder = Path(to) if to else Path(os.environ.get("NULLREC_DATA") or "data").expanduser() / name
    notes = []
    client = httpx.Client(follow_redirects=True, timeout=30, headers={"Accept-Encoding": "identity"})
    with alone(folder), client:
        for file in SETS[name]:
            path = folder / file.name
            url = mirror.rstrip("/") + urlsplit(file.url).path if mirror else file.url
            fetched = not path.exists()
            if fetched:
                _fetch(client, url, file.size, path, attempts)
            wrong, said = _check(client, url, file, path)
            if wrong and fetched:
                path.unlink()
            if wrong:
                end = "The file was removed." if fetched else "Remove it to fetch it anew."
                raise InputError(f"{path}: {wrong}. {end}")
            notes.append(said if fetched else f"{said} (was there)")
            if path.suffix == ".zip":
                unpack(path, folder)
    return folder, notes


def _fetch(client: httpx.Client, url: str, size: int | None, path: Path, attempts: int) -> None:
    """`path` from `url`, by way of `<path>.part`, which outlives every failure that may pass."""
    part = path.with_name(path.name + ".part")
    for attempt in range(1, attempts + 1):
        try:
            _receive(client, url, size, part)
            break
        except (_Again, httpx.RequestError) as error:
            if attempt == attempts:
                why = str(error) or type(error).__name__
                raise InputError(f"{url}: gave up after {attempts} attempts ({why}); the same command goes on from "
                                 "what has come, and --mirror names another server.") from None
            time.sleep(min(2.0 ** (attempt - 1), 30.0))
    with part.open("rb") as whole:
        os.fsync(whole.fileno())
    part.replace(path)
    _about(part).unlink()


def _known(part: Path) -> dict:
    """What is known of a part that has come; nothing where its record is missing or damaged, and it comes anew."""
    try:
        return read_json(_about(part), ["url", "validator", "total"]) if part.exists() else {}
    except DamagedFile:
        return {}


def _receive(client: httpx.Client, url: str, size: int | None, part: Path) -> None:
    """One request: the rest of `part`, or all of it anew where the rest would not fit."""
    known = _known(part)
    have = part.stat().st_size if known.get("url") == url and known.get("validator") else 0
    if have and have == known["total"]:
        return  # stopped between the last byte and the new name
    headers = {"Range": f"bytes={have}-", "If-Range": known["validator"]} if have else {}
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code == 416:
            part.unlink(missing_ok=True)
            raise _Again("the server has less than was kept")
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise _Again(f"{answer.status_code} {answer.reason_phrase}")
        if answer.status_code not in (200, 206):
            raise InputError(f"{url}: the server says {answer.status_code} {answer.reason_phrase}; --mirror names "
                             "another server.")
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        if answer.status_code == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            total, before = known.get("total"), known.get("validator", "")
            now = answer.headers.get("ETag" if before.startswith('"') else "Last-Modified", before)
            # Some servers know Range and not If-Range: a file that has changed in between must not be joined.
            if not span or int(span[1]) != have or span[2] not in ("*", str(total)) or now != before:
                part.unlink(missing_ok=True)
                raise _Again("the file has changed between two parts")
        else:
            have = 0  # the file has changed, or the server ignores Range
            write_json(_about(part), {"url": url, "validator": _validator(answer), "total": total})
        if size is not None and total not in (None, size):
            part.unlink(missing_ok=True)
            raise InputError(f"{url}: {total:,} bytes are announced where {size:,} are published: another file.")
        with (writing(part), part.open("ab" if have else "wb") as out,
              bar(what=part.stem, total=total, initial=have, unit="B", unit_scale=True) as progress):
            for block in answer.iter_raw():  # as it comes: fixed blocks would be lost, unfilled, with the connection
                out.write(block)
                progress.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise _Again(f"{part.stat().st_size:,} of {total:,} bytes")


def _about(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _validator(answer: httpx.Response) -> str:
    """What If-Range may hold: a strong ETag, else the date; empty where the server gives neither."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _check(client: httpx.Client, url: str, file: File, path: Path) -> tuple[str, str]:
    """Hold `path` against what is published, what its kind begins with, and what was received before.

    Returns: what is wrong, or nothing; and a sentence for the user.
    """
    received, receipt = _digest(path, "sha256"), path.with_name(path.name + ".sha256")
    before = receipt.read_text(encoding="utf-8").split()[0] if receipt.exists() else received
    kind, _, wanted = file.checksum.partition(":")
    if kind and not wanted:
        try:
            answer = client.get(url + ".md5")
        except httpx.RequestError as error:
            raise InputError(f"{url}.md5: {error}; {path} is not checked yet, run the same command again.") from None
        found = re.search(r"\b[0-9a-f]{32}\b", answer.text) if answer.status_code == 200 else None
        wanted = found[0] if found else ""
    size = path.stat().st_size
    with path.open("rb") as opened:
        start = opened.read(2)
    wrong = ""
    if start != {".gz": b"\x1f\x8b", ".zip": b"PK"}[path.suffix]:
        wrong = f"this is no {path.suffix} file (a log-in page, perhaps)"
    elif file.size not in (None, size):
        wrong = f"{size:,} bytes, published are {file.size:,}"
    elif wanted and (digest := _digest(path, kind)) != wanted:
        wrong = f"{kind} is {digest}, published is {wanted}"
    elif not wanted and not receipt.exists() and path.suffix == ".gz" and (damage := _damage(path)):
        wrong = f"it is damaged ({damage})"
    elif before != received:
        wrong = f"sha256 is {received}, an earlier download had {before}; to accept the new one remove {receipt}"
    else:
        write_text(receipt, f"{received}  {path.name}\n")  # as sha256sum writes and checks it
    published = f"{kind} as published" if wanted else "no checksum published"
    return wrong, f"{path}: {size:,} bytes, sha256 {received}, {published}"


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind)
    with path.open("rb") as opened, bar(what=kind, total=path.stat().st_size, unit="B", unit_scale=True) as progress:
        while block := opened.read(2**20):
            digest.update(block)
            progress.update(len(block))
    return digest.hexdigest()


def _damage(path: Path) -> str:
    """What gzip's own checksum finds wrong: all there is to hold a file against of which nothing is published."""
    try:
        with (path.open("rb") as opened, gzip.open(opened) as content,
              bar(what="reading through", total=path.stat().st_size, unit="B", unit_scale=True) as progress):
            while content.read(2**22):
                progress.update(opened.tell() - progress.n)
    except (EOFError, OSError, zlib.error) as error:
        return str(error)
    return ""


def unpack(archive: Path, folder: Path) -> None:
    """Files of a zip into `folder`, without the one top folder if there is one; nothing leaves `folder`.

    Raises:
        InputError: the archive is damaged, encrypted, declares more than it can hold, or names a place outside, a
            link, a device or one file twice. All names and sizes are looked at before anything is written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            declared = sum(member.file_size for member in members)
            if declared > min(_UNPACKED_BYTES, _UNPACKED_RATIO * max(archive.stat().st_size, 2**16)):
                raise InputError(f"{archive}: declares {declared:,} bytes, too many for its own size; not unpacked.")
            parts = [_inside(archive, member) for member in members]
            if len({part[0] for part in parts}) == 1 and all(len(part) > 1 for part in parts):
                parts = [part[1:] for part in parts]
            if len({"/".join(part).casefold() for part in parts}) < len(parts):
                raise InputError(f"{archive}: holds one name twice; not unpacked.")
            for member, part in zip(members, parts, strict=True):
                path = folder.joinpath(*part)
                if path.exists() and path.stat().st_size == member.file_size:
                    continue
                # zipfile reads no more than a member declares, and compares its CRC.
                with opened.open(member) as source, atomic(path) as temporary, temporary.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        archive.unlink()
        raise InputError(f"{archive}: cannot be unpacked ({error}). It was removed.") from None


def _inside(archive: Path, member: zipfile.ZipInfo) -> tuple[str, ...]:
    """The path of a member as parts, none of which leads out of the folder."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    parts = PurePosixPath(member.filename).parts
    if (kind not in (0, stat.S_IFREG) or not parts or "\\" in member.filename or ":" in member.filename
            or any(part in ("..", "/", "//") for part in parts) or parts[-1].startswith(archive.name)):
        raise InputError(f"{archive}: member {member.filename!r} is not a plain file within the folder; not unpacked.")
    return parts
