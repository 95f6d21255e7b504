"""Embeddings of a server, asked over a real connection: an imitation of `/v1/embeddings` that can misbehave."""

import base64
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from nullrec_lib.errors import InputError
from nullrec_lib.language.encoder import embed_items, embed_texts, encode, identity
from nullrec_lib.language.encoders import server as module
from nullrec_lib.language.servers import KEYS, NO_KEY

SECRET = "sk-nobody-must-ever-see-this"
TEXTS = [f"text {i}" for i in range(11)]


def vector(text: str, width: int = 8) -> list[float]:
    """Of no particular length, and the same number in float32."""
    return [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:width]]


def unit(texts) -> np.ndarray:
    rows = np.array([vector(text) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Imitation(ThreadingHTTPServer):
    """Answers as a server does, unless `misbehave(number of the request, texts)` returns (status, content)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[list[str]] = []
        self.answered: list[str] = []
        self.keys: set[str] = set()
        self.misbehave = lambda number, texts: None
        self.under_way = self.most_under_way = 0
        self.pause = 0.0
        self.lock = threading.Lock()

    @property
    def name(self) -> str:
        return f"server:http://127.0.0.1:{self.server_port}/v1#tiny"

    def handle_error(self, *_):
        """A client that does not wait is part of some tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/embeddings" and asked["model"].startswith("tiny")
        server, texts = self.server, asked["input"]
        with server.lock:
            server.asked.append(texts)
            server.keys.add(self.headers["Authorization"])
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            number = len(server.asked)
        time.sleep(server.pause)
        status, content = server.misbehave(number, texts) or (200, answer(texts, asked.get("encoding_format", "float")))
        with server.lock:
            server.under_way -= 1
            if status == 200:
                server.answered += texts
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(content, bytes) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After-Ms", "5")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def answer(texts, form="float", **changed) -> dict:
    """Last text first: the order is in `index`."""
    as_asked = {"float": list, "base64": lambda row: base64.b64encode(np.array(row, "<f4").tobytes()).decode()}[form]
    data = [{"object": "embedding", "index": i, "embedding": as_asked(vector(text))} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 3 * len(texts), "total_tokens": 3 * len(texts)}
    return {"object": "list", "model": "tiny", "data": data[::-1], "usage": usage} | changed


def refused(message: str, status: int = 400) -> tuple[int, dict]:
    return status, {"error": {"message": message, "type": "some_error", "code": None}}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(KEYS[0], SECRET)
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "RETRIES", 2)
    with Imitation() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def fails(call) -> str:
    """The error of a call: one sentence, and the key is nowhere in it nor in what would be printed of it."""
    with pytest.raises(InputError) as caught:
        call()
    printed = "".join(traceback.format_exception(caught.value))
    assert SECRET not in printed and SECRET not in repr(caught.value)
    said = str(caught.value)
    assert "\n" not in said and said.startswith("encoder: ") and said.endswith(".") and not said.endswith("..")
    return said


def everything_under(folder) -> bytes:
    return b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_every_text_gets_its_own_row(server):
    server.pause = 0.05
    rows = encode(TEXTS, server.name)
    assert rows.shape == (11, 8) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, unit(TEXTS), atol=1e-6)
    assert sorted(map(len, server.asked)) == [1, 2, 2, 2, 2, 2]
    assert server.most_under_way == module.REQUESTS == 4
    assert server.keys == {f"Bearer {SECRET}"}


def test_a_server_that_knows_no_base64(server):
    server.misbehave = lambda number, texts: (200, answer(texts, usage=None))
    np.testing.assert_allclose(encode(TEXTS, server.name), unit(TEXTS), atol=1e-6)


def test_a_local_server_needs_no_key(server, monkeypatch):
    monkeypatch.delenv(KEYS[0])
    encode(["a"], server.name)
    assert server.keys == {f"Bearer {NO_KEY}"}


def test_an_empty_text_is_asked_about_with_a_space_and_a_long_one_is_cut(server, monkeypatch):
    before = identity(server.name)
    monkeypatch.setattr(module, "MAX_CHARACTERS", 6)
    np.testing.assert_allclose(encode(["a chair", ""], server.name), unit(["a chai", " "]), atol=1e-6)
    assert identity(server.name) != before


def test_a_busy_server_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(module, "REQUESTS", 1)
    busy = {1: 500, 2: 429, 4: 503}
    server.misbehave = lambda number, _: refused("busy", busy[number]) if number in busy else None
    np.testing.assert_allclose(encode(TEXTS[:4], server.name), unit(TEXTS[:4]), atol=1e-6)
    assert len(server.asked) == 2 + 3


def test_a_server_that_stays_busy(server, tmp_path):
    server.misbehave = lambda *_: refused("try\nlater.", 503)
    said = fails(lambda: embed_texts(["a"], server.name, tmp_path))
    assert "/v1 says 503: try later; the same command goes on from here" in said and len(server.asked) == 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused(server, tmp_path, status):
    server.misbehave = lambda *_: refused(f"Incorrect API key provided: {SECRET[:9]}***", status)
    said = fails(lambda: embed_texts(["a"], server.name, tmp_path))
    assert f"refuses the key ({status}); set {KEYS[0]}" in said and SECRET[:9] not in said
    assert len(server.asked) == 1


def test_a_server_that_repeats_the_key(server, tmp_path):
    server.misbehave = lambda *_: refused(f"you said {SECRET}")
    assert "says 400: you said …; " in fails(lambda: embed_texts(["a"], server.name, tmp_path))
    server.misbehave = lambda *_: (500, f"<p>{SECRET}</p>".encode())
    fails(lambda: embed_texts(["a"], server.name, tmp_path))
    assert SECRET.encode() not in everything_under(tmp_path)


def row(index, embedding) -> dict:
    return {"object": "embedding", "index": index, "embedding": embedding}


@pytest.mark.parametrize("content, words", [
    (answer(["a"]), "answers 1 embeddings for 2 texts"),
    (answer(["a", "b", "c"]), "answers 3 embeddings for 2 texts"),
    (answer([], data=[row(0, [1.0]), row(1, [1.0]), row(1, [2.0])]), "answers 3 embeddings for 2 texts"),
    (answer([], data=[row(0, [1.0]), row(0, [1.0])]), "2 embeddings for 2 texts, or not one for each"),
    (answer([], data=[row(1, [1.0]), row(2, [1.0])]), "2 embeddings for 2 texts, or not one for each"),
    (answer([], data=[row(0, [1.0, 2.0]), row(1, [1.0])]), "cannot be read as embeddings of one width"),
    (answer([], data=[row(0, [1.0, float("nan")]), row(1, [1.0, 2.0])]), "row 0 is not finite"),
    (answer([], data=[row(0, [1.0, 2.0]), row(1, [1e300, 2.0])]), "row 1 is not finite"),
    (answer([], data=[row(0, [1.0, 2.0]), row(1, [0.0, 0.0])]), "row 1 is zero"),
    (answer([], data=[row(0, [1.0, "x"]), row(1, [1.0, 2.0])]), "cannot be read as embeddings"),
    (answer([], data=[row(0, 1.0), row(1, 2.0)]), "cannot be read as embeddings"),
    (answer([], data=[row(0, [10**400]), row(1, [1])]), "cannot be read as embeddings"),
    (answer([], data=[]), "cannot be read as embeddings"),
    (answer([], data=None), "cannot be read as embeddings"),
    ({}, "cannot be read as embeddings"),
    ([], "cannot be read as embeddings"),
    (b"<p>Welcome to the web page</p>", "cannot be read as embeddings"),
])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_an_answer_that_is_none(server, tmp_path, content, words):
    server.misbehave = lambda *_: (200, content)
    assert words in fails(lambda: embed_texts(["a", "b"], server.name, tmp_path))
    server.misbehave = lambda *_: None
    np.testing.assert_allclose(embed_texts(["a", "b"], server.name, tmp_path), unit(["a", "b"]), atol=1e-6)


def test_widths_that_differ_between_answers(server, monkeypatch):
    monkeypatch.setattr(module, "REQUESTS", 1)
    narrow = lambda texts: answer([], data=[row(i, vector(text, 4)) for i, text in enumerate(texts)])
    server.misbehave = lambda number, texts: (200, narrow(texts)) if number > 1 else None
    assert "widths 8 and 4" in fails(lambda: encode(TEXTS, server.name))
    assert len(server.asked) < 5  # and nobody is asked on


def test_another_model_under_the_same_name(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REQUESTS", 1)
    embed_texts(TEXTS[:2], server.name, tmp_path)
    narrow = lambda texts: answer([], data=[row(i, vector(text, 4)) for i, text in enumerate(texts)])
    server.misbehave = lambda number, texts: (200, narrow(texts))
    server.pause = 0.03
    with pytest.raises(InputError, match=r"\.sqlite: holds embeddings of width 8 and now gets 4, so another") as kept:
        embed_texts(TEXTS, server.name, tmp_path)
    time.sleep(0.3)
    assert len(server.asked) < 5, kept  # and nobody is asked on while the error is looked at


def test_a_server_that_hangs(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    monkeypatch.setattr(module, "RETRIES", 1)
    server.pause = 0.6
    said = fails(lambda: embed_texts(["a"], server.name, tmp_path))
    assert "did not answer within 0.2 seconds, 2 times; " in said and len(server.asked) == 2
    server.pause = 0.0
    np.testing.assert_allclose(embed_texts(["a"], server.name, tmp_path), unit(["a"]), atol=1e-6)


def test_nobody_there(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRIES", 0)
    with Imitation() as closed:
        name = closed.name
    assert "could not be reached, 1 times; see that it runs" in fails(lambda: embed_texts(["a"], name, tmp_path))


@pytest.mark.parametrize("requests", [1, 4])
def test_what_was_answered_is_not_asked_again(server, tmp_path, monkeypatch, requests):
    monkeypatch.setattr(module, "REQUESTS", requests)
    texts = [f"text {i}" for i in range(40)]
    server.pause = 0.01
    server.misbehave = lambda number, _: refused("no money left") if number == 7 else None
    assert "no money left" in fails(lambda: embed_texts(texts, server.name, tmp_path))
    paid = list(server.answered)
    assert 12 <= len(paid) < 40 - 2 * requests  # not one more was begun than were under way
    server.misbehave = lambda *_: None
    server.asked.clear()
    np.testing.assert_allclose(embed_texts(texts, server.name, tmp_path), unit(texts), atol=1e-6)
    assert sorted(text for some in server.asked for text in some) == sorted(set(texts) - set(paid))


def stored(folder) -> int:
    """Texts that are kept under a folder, seen from outside."""
    try:
        [path] = (folder / "texts").glob("*.sqlite")
        with closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT count(*) FROM vectors").fetchone()[0]
    except (ValueError, sqlite3.Error):  # not there yet
        return 0


def test_a_killed_process_goes_on_where_it_was(server, tmp_path):
    gate = threading.Event()
    texts = [f"text {i}" for i in range(160)]
    server.misbehave = lambda number, _: None if number <= 3 or gate.wait(120) else refused("too late")
    code = ("import sys; from nullrec_lib.language.encoder import embed_texts; from pathlib import Path; "
            "embed_texts([f'text {i}' for i in range(160)], sys.argv[1], Path(sys.argv[2]))")
    process = subprocess.Popen([sys.executable, "-c", code, server.name, str(tmp_path)], env=dict(os.environ))
    try:
        deadline = time.monotonic() + 120
        while stored(tmp_path) < 96 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    paid = [text for some in server.asked[:3] for text in some]
    assert len(paid) == 96  # 32 to a request in that process
    gate.set()
    server.misbehave = lambda *_: None
    server.asked.clear()
    np.testing.assert_allclose(embed_texts(texts, server.name, tmp_path), unit(texts), atol=1e-6)
    assert sorted(text for some in server.asked for text in some) == sorted(set(texts) - set(paid))


ITEMS = pd.DataFrame([("a", "Red chair", "Oak."), ("b", "Lamp", ""), ("c", "", "")],
                     columns=["item_id", "title", "description"])


def test_a_catalogue_is_paid_once_and_the_record_tells(server, tmp_path):
    rows = embed_items(ITEMS, server.name, tmp_path)
    np.testing.assert_allclose(rows[:2], unit(["Red chair. Oak.", "Lamp"]), atol=1e-6)
    np.testing.assert_allclose(rows[2], rows[:2].mean(axis=0), atol=1e-6)  # of an item without text nothing is asked
    [path] = (tmp_path / "embeddings").glob("*.json")
    record = json.loads(path.read_text())
    url, model = server.name.removeprefix("server:").split("#")
    told = {name: record[name] for name in ("encoder", "kind", "url", "model", "tokens", "tokens_in_all", "shape")}
    assert told == {"encoder": server.name, "kind": "server", "url": url, "model": model, "tokens": 6,
                    "tokens_in_all": 6, "shape": [3, 8]}
    stored = load_file(path.with_suffix(".safetensors"))["embeddings"]
    np.testing.assert_allclose(stored[:2], rows[:2], atol=1e-6)  # brought to unit norm once more when they are read
    asked = len(server.asked)
    np.testing.assert_array_equal(embed_items(ITEMS, server.name, tmp_path), rows)
    embed_items(ITEMS[:2], server.name, tmp_path)  # another catalogue of texts that are there
    assert len(server.asked) == asked
    embed_items(ITEMS, server.name, tmp_path, template="{title}")  # one new text
    assert server.asked[asked:] == [["Red chair"]]
    spent = sorted((one["tokens"], one["tokens_in_all"])
                   for one in (json.loads(some.read_text()) for some in (tmp_path / "embeddings").glob("*.json")))
    assert spent == [(0, 6), (3, 9), (6, 6)]
    assert SECRET.encode() not in everything_under(tmp_path)


def test_another_server_or_model_is_another_encoder(server, tmp_path):
    names = [server.name, server.name.replace("/v1", "/v2"), server.name + "-large", "server:http://localhost/v1#tiny"]
    assert len({identity(name) for name in names}) == 4 and server.asked == []
    assert identity(server.name.replace("/v1", "/v1/")) == identity(server.name)
    embed_items(ITEMS, server.name, tmp_path)
    embed_items(ITEMS, names[2], tmp_path)
    assert len(server.asked) == 2 and len(list((tmp_path / "embeddings").iterdir())) == 4


@pytest.mark.parametrize("name, words", [
    ("server:", "written server:http://HOST/v1#MODEL"), ("server:http://host/v1", "written server:"),
    ("server:host/v1#m", "no address"), ("server:ftp://host/v1#m", "no address"), ("server:http:///v1#m", "no address"),
    (f"server:https://me:{SECRET}@host/v1#m", "password"), (f"server:https://{SECRET}@host/v1#m", "password"),
    (f"server:https://host/v1?key={SECRET}#m", "leave that out"), ("server:http://[host/v1#m", "cannot be read"),
])
def test_an_address_that_is_none_or_holds_a_password(name, words):
    assert words in fails(lambda: identity(name))
