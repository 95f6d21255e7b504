"""Texts from a server: a scripted one that fails in every way, and a real one that is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import httpx
import openai._base_client
import pytest

from nullrec_lib.errors import InputError
from nullrec_lib.language.servers import KEYS, NO_KEY, address
from nullrec_lib.language.writers import Prompt, WriterError, server
from nullrec_lib.language.writers.server import Server

KEY = "sk-never-to-be-seen-1234567890"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No key of whoever runs the tests, no proxy, and pauses that take no time."""
    for name in (*KEYS, "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server, "PAUSE", 0.01)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)


# A scripted server


@dataclass
class Reply:
    body: dict | bytes
    status: int = 200
    headers: dict = field(default_factory=dict)
    after: float = 0.0
    """Seconds."""


def said(content, **more) -> Reply:
    spent = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    message = {"role": "assistant", "content": content} | more
    return Reply({"choices": [{"index": 0, "finish_reason": "length", "message": message}], "usage": spent})


def failed(status: int, message: str = "no", **headers) -> Reply:
    return Reply({"error": {"message": message}}, status, headers)


class Scripted:
    """`answer(body, nth)` → the reply to the nth request (from 1) with the same prompt."""

    def __init__(self):
        self.answer = lambda body, nth: said(body["messages"][0]["content"].upper())
        self.models = Reply({"object": "list", "data": [{"id": "tiny"}]})
        self.paths, self.headers, self.bodies = [], [], []
        self.active = self.most = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.reply(outer.models)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.paths.append(self.path)
                    outer.headers.append(self.headers)
                    outer.bodies.append(body)
                    outer.active += 1
                    outer.most = max(outer.most, outer.active)
                    nth = sum(other["messages"] == body["messages"] for other in outer.bodies)
                reply = outer.answer(body, nth)
                time.sleep(reply.after)
                with lock:
                    outer.active -= 1  # before the client can know and send the next
                self.reply(reply)

            def reply(self, reply):
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                headers = {"Content-Type": "application/json", "Content-Length": len(content)} | reply.headers
                try:
                    self.send_response(reply.status)
                    for name, value in headers.items():
                        self.send_header(name.replace("_", "-"), str(value))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client waited no longer
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def scripted():
    fake = Scripted()
    yield fake
    fake.http.shutdown()
    fake.http.server_close()


def prompts(*texts) -> list[Prompt]:
    return [Prompt(text) for text in texts]


def sentence(error) -> str:
    """The message, which is one sentence in one line."""
    text = str(error.value)
    assert text.endswith(".") and ". " not in text and "\n" not in text
    return text


def test_what_is_sent_and_what_comes_back(scripted):
    writer = Server(scripted.url, "tiny", temperature=0.5, max_tokens=9)
    assert writer.write(prompts("one"), seed=5) == ["ONE"]
    message = {"role": "user", "content": "one"}
    settings = {"temperature": 0.5, "max_tokens": 9, "seed": 5}
    assert scripted.bodies == [{"model": "tiny", "messages": [message]} | settings]
    assert scripted.paths == ["/v1/chat/completions"]
    Server(f"{scripted.url}/any/v2/", "tiny", top_p=0.9).write(prompts("two"), seed=0)
    assert scripted.paths[1] == "/any/v2/chat/completions"
    assert scripted.bodies[1]["top_p"] == 0.9 and scripted.bodies[1]["seed"] == 0


def test_nothing_is_asked_for_nothing(scripted):
    assert Server(scripted.url, "tiny").write([], seed=0) == [] and not scripted.bodies


def test_order_is_kept_and_never_more_at_a_time_than_allowed(scripted):
    def answer(body, nth):
        reply = said(body["messages"][0]["content"].upper())
        reply.after = 0.05 if int(body["messages"][0]["content"][1:]) % 3 == 0 else 0.01
        return reply

    scripted.answer = answer
    writer = Server(scripted.url, "tiny", concurrency=3)
    texts = [f"p{number}" for number in range(20)]
    came = list(writer.stream(prompts(*texts), seed=0))
    assert [index for index, _ in came] != list(range(20))
    assert sorted(came) == list(enumerate(text.upper() for text in texts))
    assert writer.write(prompts(*texts), seed=0) == [text.upper() for text in texts]
    assert scripted.most == 3 and writer.batch == 12


def test_a_text_is_there_before_the_others(scripted):
    release = threading.Event()

    def answer(body, nth):
        if body["messages"][0]["content"] == "slow":
            release.wait(10)
        return said("x")

    scripted.answer = answer
    stream = Server(scripted.url, "tiny").stream(prompts("slow", "fast"), seed=0)
    assert next(stream) == (1, "x")
    release.set()
    assert list(stream) == [(0, "x")]


@pytest.mark.parametrize("content, text", [
    (None, ""), ("", ""), (" \n two  words\n", "two  words"), ("ende…", "ende…"),
    ("half \ud83d of it", "half ? of it"),
])
def test_a_text_is_what_was_said(scripted, content, text):
    scripted.answer = lambda body, nth: said(content, refusal="I would rather not.")
    assert Server(scripted.url, "tiny").write(prompts("a"), seed=0) == [text]


# Failures that another try can help


HTML = Reply(b"<html>starting</html>", headers={"Content-Type": "text/html"})
SENSELESS = [
    Reply(b'{"choices": ['), HTML, Reply(b""), Reply({"choices": []}), Reply({"choices": None}),
    Reply({"choices": [{}]}), Reply({"error": {"message": "upstream"}}), Reply(b"[]"), Reply(b"null"), said(["parts"]),
]


@pytest.mark.parametrize("failure", [failed(status) for status in (408, 409, 429, 500, 502, 503)] + SENSELESS)
def test_failures_that_pass(scripted, failure):
    scripted.answer = lambda body, nth: failure if nth <= 2 else said("good")
    writer = Server(scripted.url, "tiny", retries=2)
    assert writer.write(prompts("a"), seed=0) == ["good"]
    assert len(scripted.bodies) == 3 and writer.usage.prompts == 1


@pytest.mark.parametrize("failure, why", [
    (failed(500, "CUDA out\nof memory."), r"fails \(500: CUDA out of memory\)"), (failed(429, ""), r"fails \(429\)"),
    (Reply(b"<html>" + b"x" * 900, 502), r"fails \(502: <html>x{194}\)"),
    *((reply, "answers what is no chat completion") for reply in SENSELESS),
])
def test_failures_that_stay(scripted, failure, why):
    scripted.answer = lambda body, nth: failure
    with pytest.raises(WriterError, match=f"^server:{scripted.url}/v1 {why}, tried 3 times; what was written is kept, "
                                          "and the same command goes on from there.$") as error:
        Server(scripted.url, "tiny", retries=2).write(prompts("a"), seed=0)
    assert sentence(error) and len(scripted.bodies) == 3


def test_a_server_says_how_long_to_wait(scripted):
    scripted.answer = lambda body, nth: failed(429, Retry_After="0.4") if nth == 1 else said("good")
    begin = time.perf_counter()
    assert Server(scripted.url, "tiny").write(prompts("a"), seed=0) == ["good"]
    assert time.perf_counter() - begin >= 0.4


def test_a_server_that_wants_hours_is_not_waited_for(scripted):
    scripted.answer = lambda body, nth: failed(429, "quota", Retry_After="7200")
    with pytest.raises(WriterError, match="429: quota.*tried once;"):
        Server(scripted.url, "tiny").write(prompts("a"), seed=0)


def test_an_answer_that_does_not_come(scripted):
    scripted.answer = lambda body, nth: Reply({}, after=0.5) if nth == 1 else said("good")
    assert Server(scripted.url, "tiny", timeout_s=0.2).write(prompts("a"), seed=0) == ["good"]
    with pytest.raises(WriterError, match=r"does not answer in time \(timeout_s: 0.2\), tried once;") as error:
        Server(scripted.url, "tiny", timeout_s=0.2, retries=0).write(prompts("a new one"), seed=0)
    assert sentence(error)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("model", ["tiny", None])
def test_a_server_that_is_gone(model):
    with pytest.raises(WriterError, match="cannot be reached, tried 2 times; what was written is kept") as error:
        Server(f"http://127.0.0.1:{closed_port()}", model, retries=1).write(prompts("a"), seed=0)
    assert sentence(error)


# Failures that stay


@pytest.mark.parametrize("status, why", [
    (400, r"refuses the request \(400: too long\)"), (401, r"refuses the key \(401; set NULLREC_API_KEY in the env"),
    (402, r"fails \(402: too long\)"), (403, r"refuses the key \(403; "), (422, r"refuses the request \(422: too long"),
    (404, r"does not know the model tiny or this address \(404: too long\)"),
])
def test_what_is_refused_is_not_tried_again(scripted, status, why):
    scripted.answer = lambda body, nth: failed(status, "too long.")
    with pytest.raises(WriterError, match=f"{why}.*, tried once; what was written is kept") as error:
        Server(scripted.url, "tiny").write(prompts("a"), seed=0)
    assert sentence(error) and len(scripted.bodies) == 1


def test_what_was_answered_before_a_failure_is_yielded_and_nothing_more_is_asked(scripted):
    failing = threading.Event()

    def answer(body, nth):
        asked = body["messages"][0]["content"]
        if asked == "fails":
            if nth == 2:
                failing.set()
            return failed(500)
        if asked == "slow":
            failing.wait(10)
            return Reply(said("paid for").body, after=0.3)  # the other is known to have failed by then
        return said("quick")

    scripted.answer = answer
    writer, stored = Server(scripted.url, "tiny", concurrency=2, retries=1), []
    with pytest.raises(WriterError):
        for text in writer.stream(prompts("first", "slow", "fails", "later", "last"), seed=0):
            stored.append(text)
    assert stored == [(0, "quick"), (1, "paid for")]
    assert sorted(body["messages"][0]["content"] for body in scripted.bodies) == ["fails", "fails", "first", "slow"]
    assert writer.usage.prompts == 2


def test_who_stops_reading_does_not_wait(scripted):
    release = threading.Event()

    def answer(body, nth):
        if body["messages"][0]["content"] != "0":
            release.wait(10)
        return said("x")

    scripted.answer = answer
    stream = Server(scripted.url, "tiny", concurrency=2).stream(prompts(*map(str, range(9))), seed=0)
    next(stream)
    begin = time.perf_counter()
    stream.close()
    assert time.perf_counter() - begin < 1
    release.set()
    time.sleep(0.2)
    assert len(scripted.bodies) <= 3


def test_an_error_of_any_kind_ends_a_batch(scripted):
    with pytest.raises(UnicodeEncodeError):  # half of a character: no text that can be sent
        Server(scripted.url, "tiny").write(prompts("\ud83d"), seed=0)


# Parameters that a server does not know


def test_a_server_without_seeds_is_asked_without(scripted):
    scripted.answer = lambda body, nth: failed(400, "Unknown parameter: 'seed'") if "seed" in body else said("good")
    writer = Server(scripted.url, "tiny", concurrency=4)
    assert writer.write(prompts(*"abcd"), seed=5) == ["good"] * 4
    asked = len(scripted.bodies)
    assert asked <= 8
    assert writer.write(prompts(*"efgh"), seed=5) == ["good"] * 4
    assert len(scripted.bodies) == asked + 4


def test_a_server_that_names_the_limit_anew(scripted):
    refusal = "Unsupported parameter: 'max_tokens' is not supported, use 'max_completion_tokens' instead"
    scripted.answer = lambda body, nth: failed(400, refusal) if "max_tokens" in body else said("good")
    assert Server(scripted.url, "tiny", max_tokens=9).write(prompts("a"), seed=5) == ["good"]
    assert scripted.bodies[1]["max_completion_tokens"] == 9 and scripted.bodies[1]["seed"] == 5


def test_a_setting_that_decides_the_text_is_not_dropped(scripted):
    scripted.answer = lambda body, nth: failed(400, "temperature must be 1")
    with pytest.raises(WriterError, match="temperature must be 1"):
        Server(scripted.url, "tiny").write(prompts("a"), seed=5)
    assert len(scripted.bodies) == 1


# The key


@pytest.mark.parametrize("environment, sent", [
    ({}, NO_KEY), ({"OPENAI_API_KEY": KEY}, KEY),
    ({"NULLREC_API_KEY": f" {KEY}\n", "OPENAI_API_KEY": "other"}, KEY),
    ({"NULLREC_API_KEY": "", "OPENAI_API_KEY": KEY}, KEY),
])
def test_the_key_comes_from_the_environment(scripted, monkeypatch, environment, sent):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Server(scripted.url, "tiny").write(prompts("a"), seed=0)
    assert scripted.headers[0]["Authorization"] == f"Bearer {sent}"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_the_key_is_nowhere_else(scripted, monkeypatch, capfd, caplog, status):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("NULLREC_API_KEY", KEY)
    writer = Server(scripted.url, "tiny", retries=1)
    writer.write(prompts("a"), seed=0)
    quoting = f"{'x' * (server.SHOWN - 15)} {KEY}"  # longer than what is shown, which ends in the middle of the key
    scripted.answer = lambda body, nth: failed(status, quoting)
    with pytest.raises(WriterError) as error:
        writer.write(prompts("a"), seed=0)
    scripted.answer = lambda body, nth: failed(status, f"Incorrect API key provided: {KEY}")
    with pytest.raises(WriterError) as shorter:
        writer.write(prompts("a"), seed=0)
    told = "".join(traceback.format_exception(error.value) + traceback.format_exception(shorter.value))
    everything = "".join([told, repr(writer), repr(vars(writer)), writer.name, writer.revision, *capfd.readouterr()])
    everything += caplog.text
    assert "server:" in everything and KEY[:9] not in everything


def test_a_key_that_can_be_none(scripted, monkeypatch):
    monkeypatch.setenv("NULLREC_API_KEY", f"{KEY}\nmore")
    with pytest.raises(InputError, match="NULLREC_API_KEY: no key has a line break .* set it again") as error:
        Server(scripted.url, "tiny").write(prompts("a"), seed=0)
    assert KEY not in sentence(error)


# Settings


@pytest.mark.parametrize("given, made", [
    ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"), ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
    (" HTTP://Host:8000/v1/ ", "http://host:8000/v1"), ("https://host/api/v1", "https://host/api/v1"),
    ("https://host/v1beta/openai/", "https://host/v1beta/openai"), ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ("https://host/v1/chat/completions", "https://host/v1"), ("https://host/@team/v1", "https://host/@team/v1"),
])
def test_an_address_in_its_one_form(given, made):
    assert address(given) == address(made) == made


@pytest.mark.parametrize("url, why", [
    ("http://user:secret@host/v1", "a name or password is in it; leave them out and set NULLREC_API_KEY"),
    ("https://secret@host", "a name or password"), ("//user:secret@host", "a name or password"),
    ("user:secret@host", "no address"), ("https://host/v1?key=secret", "follows a [?] or #"),
    ("https://host/v1#secret", "follows"), ("host:8000", "no address"), ("127.0.0.1:8000", "no address"),
    ("", "no address"), ("ftp://host", "no address"), ("http://", "no address"),
    ("http://host:secret", "cannot be read"),
])
def test_an_address_that_is_none_or_holds_a_secret(url, why):
    with pytest.raises(InputError, match=f"^url: .*{why}") as error:
        Server(url, "tiny")
    assert "secret" not in sentence(error)


@pytest.mark.parametrize("setting", [
    {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0},
    {"timeout_s": 0}, {"concurrency": 0}, {"retries": -1}, {"context": 0}, {"price_in": -1, "price_out": 1},
    {"price_in": 1},
])
def test_settings_out_of_range(setting):
    with pytest.raises(InputError, match=f"^{next(iter(setting))}.*:") as error:
        Server("http://host", "tiny", **setting)
    assert sentence(error)


def test_the_only_model_is_taken(scripted):
    assert Server(scripted.url).model == "tiny"


def listed(*names) -> Reply:
    return Reply({"object": "list", "data": [{"id": name} for name in names]})


@pytest.mark.parametrize("reply, why", [
    (listed("a", "b"), "has a, b; name one of them"), (listed(), "lists none; name it"),
    (failed(404), "lists none; name it"), (failed(500), "lists none; name it"), (HTML, "lists none"),
    (Reply(b"{"), "lists none"),
])
def test_no_only_model(scripted, reply, why):
    scripted.models = reply
    with pytest.raises(InputError, match=f"^model: {scripted.url}/v1 {why}") as error:
        Server(scripted.url)
    assert sentence(error)


def test_a_key_that_is_refused_before_anything_is_asked(scripted):
    scripted.models = failed(401)
    with pytest.raises(WriterError, match="refuses the key"):
        Server(scripted.url)


def test_the_revision_is_all_that_decides_an_answer():
    def made(url="http://host", model="m", **settings) -> str:
        return Server(url, model, **settings).revision

    same = [made(), made("http://host/v1/"), made(temperature=0), made(concurrency=3), made(context=9), made(retries=0)]
    others = [made("http://other"), made(model="n"), made(temperature=1), made(top_p=1), made(max_tokens=9)]
    assert len(set(same)) == 1 and len(set(same + others)) == 6 and len(made()) == 64
    assert Server("http://host", "m").name == "server:http://host/v1"


# What it takes


def test_what_it_will_take_is_known_before(scripted):
    asked = prompts("a" * 7, "ü")
    free = Server(scripted.url, "tiny", max_tokens=100)
    assert free.estimate(asked) == {"prompts": 2, "prompt_tokens": 4, "written_tokens": 200, "cost": None}
    dear = Server(scripted.url, "tiny", max_tokens=100, price_in=1e6, price_out=2e6)
    assert dear.estimate(asked)["cost"] == 404 and dear.estimate([])["cost"] == 0
    assert [free.count(text) for text in ("", "abc", "abcd", "\ud83d")] == [0, 1, 2, 1]
    assert not scripted.bodies


def test_what_it_took(scripted):
    writer = Server(scripted.url, "tiny", concurrency=8)
    writer.write(prompts(*map(str, range(40))), seed=0)
    assert (writer.usage.prompts, writer.usage.prompt_tokens, writer.usage.written_tokens) == (40, 280, 120)
    assert 0 < writer.usage.seconds < 10


@pytest.mark.parametrize("spent", [None, {}, "many", {"prompt_tokens": None}])
def test_what_it_took_where_the_server_does_not_say(scripted, spent):
    scripted.answer = lambda body, nth: Reply(said("seven b").body | {"usage": spent})
    writer = Server(scripted.url, "tiny")
    writer.write(prompts("1234"), seed=0)
    assert (writer.usage.prompt_tokens, writer.usage.written_tokens) == (2, 3)


# A real server


class Served:
    """`transformers serve` with a tiny model of random weights, on a port of its own."""

    def __init__(self, folder):
        self.model, self.folder, self.port = str(folder / "model"), folder, closed_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self, deadline: float = 120.0) -> None:
        environment = os.environ | {"HF_HOME": str(self.folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", self.model, "--device", "cpu",
                   "--dtype", "float32", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + deadline
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"transformers serve did not start:\n{(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("served")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: rank for rank, letter in enumerate(letters)}, []))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}>"
    tokenizer.save_pretrained(folder / "model")
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    ))
    model.generation_config.do_sample = True  # or the server takes no temperature
    model.save_pretrained(folder / "model")
    (folder / "hub" / "hub").mkdir(parents=True)  # looked into for the list of models
    server = Served(folder)
    yield server
    server.kill()


ASKED = prompts(*(f"What does user {number} like?" for number in range(20)))


@pytest.mark.slow
def test_a_real_server(served):
    writer = Server(served.url, served.model, max_tokens=8, concurrency=2)
    texts = writer.write(ASKED[:3], seed=0)
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts) and any(texts)
    # `<user> `, the line break and `>` are nine bytes, and a byte is a token.
    assert writer.usage.prompt_tokens == sum(len(prompt.text) + 9 for prompt in ASKED[:3])
    assert 0 < writer.usage.written_tokens <= 24
    assert writer.write(ASKED[:3], seed=1) == texts, "the likeliest text does not depend on the seed"


@pytest.mark.slow
def test_a_real_server_samples_by_the_seed(served):
    writer = Server(served.url, served.model, max_tokens=8, concurrency=1, temperature=1.0)
    one, other = writer.write(ASKED[:3], seed=1), writer.write(ASKED[:3], seed=2)
    assert one != other and writer.write(ASKED[:3], seed=1) == one


@pytest.mark.slow
def test_a_real_server_knows_its_models(served):
    with pytest.raises(InputError, match="lists none; name it"):
        Server(served.url)
    with pytest.raises(WriterError, match="refuses the request|does not know the model|fails"):
        Server(served.url, "another", retries=0).write(ASKED[:1], seed=0)


@pytest.mark.slow
def test_a_real_server_is_killed_and_comes_back(served):
    writer = Server(served.url, served.model, max_tokens=32, concurrency=2, retries=1)
    stream, stored = writer.stream(ASKED, seed=0), {}
    with pytest.raises(WriterError, match="cannot be reached, tried 2 times; what was written is kept"):
        for index, text in stream:
            stored[index] = text
            if len(stored) == 5:
                served.kill()
    assert 5 <= len(stored) < len(ASKED)
    served.start()
    missing = [index for index in range(len(ASKED)) if index not in stored]
    stored |= {missing[at]: text for at, text in writer.stream([ASKED[index] for index in missing], seed=0)}
    assert [stored[index] for index in range(len(ASKED))] == writer.write(ASKED, seed=0)
    assert list(islice(writer.stream(ASKED[:1], seed=0), 1)) == [(0, stored[0])]
