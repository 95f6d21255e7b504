"""Downloads against a server on this machine that does what servers do: cut, ignore, change, lie, fail."""

import gzip
import hashlib
import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from nullrec_lib.cli import app
from nullrec_lib.data import download as downloads
from nullrec_lib.data.download import File, download, unpack
from nullrec_lib.errors import InputError
from nullrec_lib.files import write_json


def packed(seed: int, size: int) -> bytes:
    """A gzip file of exactly `size` bytes."""
    plain = np.random.default_rng(seed).bytes(size)
    body = gzip.compress(plain, 0, mtime=0)
    return gzip.compress(plain[:size - (len(body) - size)], 0, mtime=0)


BODY = packed(0, 300_002)
SHA = hashlib.sha256(BODY).hexdigest()


class Server:
    """Serves `files` under any prefix; `plan` holds what goes wrong with the next requests, in order."""

    def __init__(self):
        self.files = {"/there/one.gz": BODY}
        self.tag = '"first"'
        self.plan: list = []
        self.requests: list[tuple[str, dict]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append((self.path, dict(self.headers)))
                trouble = outer.plan.pop(0) if outer.plan else {}
                if callable(trouble):
                    trouble = trouble(outer) or {}
                body = outer.files.get(self.path.removeprefix("/prefix"))
                status = trouble.get("status", 200 if body is not None else 404)
                body = b"sorry" if body is None or status >= 400 else body
                start, wanted = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                holds = trouble.get("no_if_range") or self.headers.get("If-Range") == outer.tag
                if status == 200 and wanted and holds and not trouble.get("no_range"):
                    start, status = int(wanted[1]), 206
                self.send_response(status)
                if outer.tag and status < 400:
                    self.send_header("ETag", outer.tag)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                if not trouble.get("no_length"):
                    self.send_header("Content-Length", str(trouble.get("length", len(body) - start)))
                self.end_headers()
                self.wfile.write(body[start:start + trouble.get("cut", len(body))])
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/prefix"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def offer(monkeypatch):
    """`offer(File-keywords)`: the set `mine` has one file."""

    def put(name="one.gz", **known):
        monkeypatch.setitem(downloads.SETS, "mine", (File(f"https://nowhere.invalid/there/{name}", **known),))

    put()
    return put


def fetch(server, tmp_path, **options):
    return download("mine", tmp_path / "mine", server.address, **options)


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "mine").iterdir())


def test_a_file_arrives_whole_with_its_receipt_and_is_not_fetched_again(server, offer, tmp_path):
    offer(size=len(BODY), checksum=f"sha256:{SHA}")
    folder, notes = fetch(server, tmp_path)
    assert (folder / "one.gz").read_bytes() == BODY
    assert left(tmp_path) == ["one.gz", "one.gz.sha256"]
    assert (folder / "one.gz.sha256").read_text() == f"{SHA}  one.gz\n"
    assert SHA in notes[0] and "sha256 as published" in notes[0]
    assert "was there" in fetch(server, tmp_path)[1][0]
    assert [path for path, _ in server.requests] == ["/prefix/there/one.gz"]


def test_cuts_are_resumed_where_they_happened(server, offer, tmp_path):
    server.plan = [{"cut": 1000}, {"cut": 200_000}]
    folder, notes = fetch(server, tmp_path)
    assert (folder / "one.gz").read_bytes() == BODY and "no checksum published" in notes[0]
    assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=1000-", "bytes=201000-"]
    assert server.requests[1][1]["If-Range"] == '"first"'
    assert left(tmp_path) == ["one.gz", "one.gz.sha256"]


def test_another_call_goes_on_from_what_has_come(server, offer, tmp_path):
    server.plan = [{"cut": 5000}]
    with pytest.raises(InputError, match="gave up after 1 attempts"):
        fetch(server, tmp_path, attempts=1)
    assert (tmp_path / "mine" / "one.gz.part").stat().st_size == 5000
    assert fetch(server, tmp_path)[0].joinpath("one.gz").read_bytes() == BODY
    assert server.requests[-1][1]["Range"] == "bytes=5000-"


def test_killed_before_the_new_name_needs_no_request(server, offer, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "one.gz.part").write_bytes(BODY)
    write_json(tmp_path / "mine" / "one.gz.part.json",
               {"url": f"{server.address}/there/one.gz", "validator": '"first"', "total": len(BODY)})
    assert fetch(server, tmp_path)[0].joinpath("one.gz").read_bytes() == BODY and server.requests == []


@pytest.mark.parametrize("second", [{"no_range": True}, {"status": 416}])
def test_a_server_without_ranges_starts_over(second, server, offer, tmp_path):
    server.plan = [{"cut": 1000}, second]
    assert fetch(server, tmp_path)[0].joinpath("one.gz").read_bytes() == BODY


@pytest.mark.parametrize("honest", [True, False], ids=["If-Range honoured", "If-Range ignored"])
@pytest.mark.parametrize("same_size", [True, False])
def test_parts_of_two_versions_are_never_joined(honest, same_size, server, offer, tmp_path):
    changed = packed(1, 300_002 if same_size else 250_000)
    assert (len(changed) == len(BODY)) is same_size

    def change(outer):
        outer.files["/there/one.gz"], outer.tag = changed, '"second"'
        return {} if honest else {"no_if_range": True}

    server.plan = [{"cut": 100_000}, change]
    assert fetch(server, tmp_path)[0].joinpath("one.gz").read_bytes() == changed


def test_without_a_validator_nothing_is_resumed(server, offer, tmp_path):
    server.tag, server.plan = "", [{"cut": 1000}]
    assert fetch(server, tmp_path)[0].joinpath("one.gz").read_bytes() == BODY
    assert all("Range" not in headers for _, headers in server.requests)


def test_busy_servers_are_asked_again_but_not_for_ever(server, offer, tmp_path):
    server.plan = [{"status": 503}, {"status": 500}, {"status": 429}]
    assert fetch(server, tmp_path)[0].joinpath("one.gz").read_bytes() == BODY
    (tmp_path / "mine" / "one.gz").unlink()
    server.plan, server.requests = [{"status": 500}] * 50, []
    with pytest.raises(InputError, match="gave up after 6 attempts .500 Internal Server Error.*--mirror"):
        fetch(server, tmp_path)
    assert len(server.requests) == 6


def test_a_server_that_announces_more_than_it_has(server, offer, tmp_path):
    server.plan = [{"length": len(BODY) + 7}] * 9
    with pytest.raises(InputError, match="gave up"):
        fetch(server, tmp_path)
    assert "one.gz" not in left(tmp_path)


def test_what_does_not_exist_is_said_at_once(server, offer, tmp_path):
    offer(name="two.gz")
    with pytest.raises(InputError, match="two.gz: the server says 404 Not Found; --mirror"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_another_size_than_published_is_refused_before_it_is_loaded(server, offer, tmp_path):
    offer(size=5)
    with pytest.raises(InputError, match="300,002 bytes are announced where 5 are published"):
        fetch(server, tmp_path)
    assert "one.gz" not in left(tmp_path)


@pytest.mark.parametrize("known, why", [
    ({"checksum": "sha256:" + "0" * 64}, f"sha256 is {SHA}, published is 000"),
    ({"checksum": "md5:" + "0" * 32}, "md5 is"),
    ({"checksum": "md5"}, "published is 00000000000000000000000000000000"),
    ({"size": 9}, "300,002 bytes, published are 9"),
])
def test_a_wrong_file_is_removed(known, why, server, offer, tmp_path):
    offer(**known)
    server.files["/there/one.gz.md5"] = b"MD5 (one.gz) = " + b"0" * 32 + b"\n"
    server.plan = [{"no_length": True}]
    with pytest.raises(InputError, match=why + ".*The file was removed"):
        fetch(server, tmp_path)
    assert not {"one.gz", "one.gz.sha256", "one.gz.part"} & set(left(tmp_path))


def test_the_publishers_md5_is_read(server, offer, tmp_path):
    offer(checksum="md5")
    server.files["/there/one.gz.md5"] = hashlib.md5(BODY).hexdigest().encode() + b"  one.gz\n"
    assert "md5 as published" in fetch(server, tmp_path)[1][0]


def test_a_page_instead_of_the_file(server, offer, tmp_path):
    server.files["/there/one.gz"] = b"<html>please log in</html>"
    with pytest.raises(InputError, match="no .gz file"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("spoiled", [BODY[:100_000], BODY[:150_000] + b"?" + BODY[150_001:]], ids=["cut", "changed"])
def test_gzip_finds_damage_where_nothing_is_published(spoiled, server, offer, tmp_path):
    server.files["/there/one.gz"] = spoiled
    server.plan = [{"no_length": True}]
    with pytest.raises(InputError, match="it is damaged .*The file was removed"):
        fetch(server, tmp_path)
    assert "one.gz" not in left(tmp_path)


def test_a_later_download_is_compared_with_the_receipt(server, offer, tmp_path):
    folder, _ = fetch(server, tmp_path)
    (folder / "one.gz").unlink()
    server.files["/there/one.gz"] = packed(2, 300_002)
    with pytest.raises(InputError, match=f"an earlier download had {SHA}; to accept .* remove .*one.gz.sha256"):
        fetch(server, tmp_path)
    (folder / "one.gz.sha256").unlink()
    fetch(server, tmp_path)


def test_a_damaged_file_that_was_there_is_named_and_left(server, offer, tmp_path):
    folder, _ = fetch(server, tmp_path)
    (folder / "one.gz").write_bytes(BODY[:-1])
    with pytest.raises(InputError, match="Remove it to fetch it"):
        fetch(server, tmp_path)
    assert (folder / "one.gz").exists()


# zip


def zipped(members, compression=zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return held.getvalue()


def test_the_top_folder_of_an_archive_is_left_out(server, offer, tmp_path):
    offer(name="one.zip")
    server.files["/there/one.zip"] = zipped([("ml/", ""), ("ml/ratings.csv", "a,b\n"), ("ml/sub/x.txt", "x")])
    folder, _ = fetch(server, tmp_path)
    assert (folder / "ratings.csv").read_text() == "a,b\n" and (folder / "sub/x.txt").read_text() == "x"
    assert (folder / "ratings.csv").stat().st_mode & 0o444
    (folder / "ratings.csv").unlink()
    fetch(server, tmp_path)  # what is missing comes back from the archive
    assert (folder / "ratings.csv").exists() and len(server.requests) == 1


def link():
    info = zipfile.ZipInfo("ml/link")
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize("name", ["../out", "ml/../../out", "/out", "//out", "C:/out", "C:\\out", "..\\out", "ml\\out",
                                  link(), "x.zip", "x.zip.sha256"], ids=str)
def test_no_member_leaves_the_folder(name, tmp_path):
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    archive = folder / "x.zip"
    archive.write_bytes(content := zipped([("ml/fine", "fine"), (name, "/etc/passwd")]))
    with pytest.raises(InputError, match="not a plain file within the folder"):
        unpack(archive, folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive] and archive.read_bytes() == content


def test_a_bomb_is_not_unpacked(tmp_path):
    archive = tmp_path / "x.zip"
    archive.write_bytes(zipped([("zeros", bytes(30_000_000))]))
    with pytest.raises(InputError, match="declares 30,000,000 bytes"):
        unpack(archive, tmp_path)
    assert list(tmp_path.iterdir()) == [archive]


def test_a_member_that_declares_less_than_it_holds(tmp_path):
    whole = bytearray(zipped([("zeros", bytes(3_000_000))]))
    for place in (whole.index(b"PK\x03\x04") + 22, whole.index(b"PK\x01\x02") + 24):
        whole[place:place + 4] = (10).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(whole)
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(tmp_path / "x.zip", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("members, why", [([("a", "1"), ("A", "2")], "one name twice")])
def test_odd_archives(members, why, tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped(members))
    with pytest.raises(InputError, match=why):
        unpack(tmp_path / "x.zip", tmp_path)


@pytest.mark.parametrize("keep", [10, 100])
def test_a_damaged_archive_is_removed(keep, tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped([("a", "1" * 1000)])[:keep])
    with pytest.raises(InputError, match="cannot be unpacked.*removed"):
        unpack(tmp_path / "x.zip", tmp_path)
    assert list(tmp_path.iterdir()) == []


# names, places, command


def test_wrong_names_and_addresses(tmp_path):
    with pytest.raises(InputError, match="the closest is movielens-100k"):
        download("movielens-100", tmp_path)
    with pytest.raises(InputError, match="yelp: its owner wants the terms accepted by hand.*https://business.yelp.com"):
        download("yelp", tmp_path)
    for mirror in ("nowhere", "ftp://x/y", "https://"):
        with pytest.raises(InputError, match="mirror"):
            download("movielens-1m", tmp_path, mirror)
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder(server, offer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NULLREC_DATA", raising=False)
    assert str(download("mine", mirror=server.address)[0]) == "data/mine"
    monkeypatch.setenv("NULLREC_DATA", str(tmp_path / "all"))
    assert download("mine", mirror=server.address)[0] == tmp_path / "all" / "mine"


def test_the_command(server, offer, tmp_path):
    listed = CliRunner().invoke(app, ["data", "download"]).stdout
    for name, files in downloads.SETS.items():
        assert name in listed and all(file.url in listed for file in files)
    assert "yelp" in listed and "4.9 MB" in listed
    told = CliRunner().invoke(app, ["data", "download", "mine", "--to", str(tmp_path / "here"), "--mirror",
                                    server.address])
    assert told.exit_code == 0 and SHA in told.stdout and f"ready: {tmp_path / 'here'}" in told.stdout
    wrong = CliRunner().invoke(app, ["data", "download", "yelp"])
    assert wrong.exit_code == 2 and "by hand" in wrong.stderr


def test_every_published_checksum_is_well_formed():
    for file in (file for files in downloads.SETS.values() for file in files):
        assert httpx.URL(file.url).scheme == "https" and file.name.endswith((".zip", ".gz"))
        assert re.fullmatch(r"|md5|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", file.checksum)
