"""A server of OpenAI's protocol is asked about every picture, waited for when busy, and quoted when it refuses."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
import torch
from PIL import Image
from tiny_captioner import picture

from patina.caption.backends import Wish, choose
from patina.caption.server import ServerCaptioner
from patina.errors import PatinaError

CPU = torch.device("cpu")


class Server(ThreadingHTTPServer):
    """A model that sees the size of a picture, with a list of answers to give before that."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.first: list[tuple[int, dict, bytes]] = []
        self.asked: list[dict] = []
        self.headers: list[dict] = []
        self.slow = 0.0
        self.busy, self.most, self.lock = 0, 0, threading.Lock()

    def handle_error(self, *_: object) -> None:
        """A client that gave up is no error of ours."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self._answer(200, {}, json.dumps({"data": [{"id": "tiny"}, {"id": "other"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
            canned = self.server.first.pop(0) if self.server.first else None
        time.sleep(self.server.slow)
        with self.server.lock:
            self.server.busy -= 1
        assert self.path == "/v1/chat/completions"
        self._answer(*(canned or (200, {}, self._caption(body))))

    def _caption(self, body: dict) -> bytes:
        image, question = body["messages"][0]["content"]
        kind, data = image["image_url"]["url"].split(",")
        assert kind == "data:image/jpeg;base64"
        size = Image.open(BytesIO(base64.b64decode(data))).size
        text = f" {size[0]} by\n{size[1]}: {question['text']} "
        choice = {"message": {"content": text}, "finish_reason": "length" if size[0] > 1000 else "stop"}
        return json.dumps({"choices": [choice]}).encode()

    def _answer(self, status: int, headers: dict, body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server: Server, **options) -> ServerCaptioner:
    captioner = ServerCaptioner(url=server.url, **({"prompt": "what?", "pauses": (0.0, 0.0)} | options))
    captioner.load(CPU, torch.float32)
    return captioner


def test_each_picture_gets_its_own_answer_and_they_are_asked_for_at_once(server):
    server.slow = 0.05
    captioner = ask(server)
    pictures = [picture(number) for number in range(0, 8, 2)] + [Image.new("RGB", (4000, 100))]
    prepared = [captioner.prepare(image) for image in pictures]
    captions = captioner.generate(prepared)
    assert [caption.text for caption in captions[:-1]] == [f"{24 + number} by 30: what?" for number in range(0, 8, 2)]
    assert captions[-1].text == "1024 by 26: what?", "large pictures are sent smaller"
    assert [caption.truncated for caption in captions] == [False] * 4 + [True]
    assert server.most > 1
    assert captions == [captioner.generate([one])[0] for one in prepared]
    sent = server.asked[0]
    assert (sent["model"], sent["temperature"], sent["seed"], sent["max_tokens"]) == ("tiny", 0, 0, 75)


def test_tags_and_key_are_sent(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    wish = Wish(url=server.url, key_env="MY_KEY", prompt="{tags}?", model="other", seed=7, max_tokens=9)
    captioner = choose(["openai"], wish, lambda: "").captioner
    captioner.load(CPU, torch.float32)
    captions = captioner.generate([captioner.prepare(picture(0))] * 2, ["cat", "dog"])
    assert [caption.text for caption in captions] == ["24 by 30: cat?", "24 by 30: dog?"]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert (server.asked[0]["model"], server.asked[0]["seed"], server.asked[0]["max_tokens"]) == ("other", 7, 9)
    assert "secret" not in captioner.name + captioner.fingerprint()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, status):
    captioner = ask(server)
    server.first = [(status, {}, b"busy")] * 2
    assert captioner.generate([captioner.prepare(picture(0))])[0].text == "24 by 30: what?"
    assert len(server.asked) == 3


def test_the_server_says_how_long_to_wait(server):
    captioner = ask(server, pauses=(5.0,))
    server.first = [(429, {"Retry-After": "0.1"}, b"")]
    begun = time.monotonic()
    captioner.generate([captioner.prepare(picture(0))])
    assert 0.1 <= time.monotonic() - begun < 4


@pytest.mark.parametrize(
    ("answer", "tries", "words"),
    [
        ((503, {}, b"still\nloading"), 3, r"answers 503 still loading after 3 tries; does it run, is --url right\?"),
        ((401, {}, b"no key"), 1, "answers 401 no key; give the key with --key-env NAME"),
        ((400, {}, b"no such picture"), 1, "answers 400 no such picture; see the server's own log"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), 1, "answers 302"),
        ((200, {}, b"<html>"), 1, "does not answer in JSON"),
        ((200, {}, b'{"choices": []}'), 1, "its answer holds no caption"),
    ],
)
def test_a_refusal_is_one_sentence(server, answer, tries, words):
    captioner = ask(server)
    server.first = [answer] * 9
    with pytest.raises(PatinaError, match=words) as refused:
        captioner.generate([captioner.prepare(picture(0))])
    assert "\n" not in str(refused.value)
    assert len(server.asked) == tries


def test_a_server_that_hangs_or_is_not_there_is_given_up(server):
    captioner = ask(server, seconds=0.1)
    server.slow = 0.4
    with pytest.raises(PatinaError, match=r"does not answer \(timed out\) after 3 tries"):
        captioner.generate([captioner.prepare(picture(0))])
    with pytest.raises(PatinaError, match=r"does not answer .*refused"):
        ServerCaptioner(url="http://127.0.0.1:9/v1", pauses=()).load(CPU, torch.float32)


def test_a_model_that_the_server_has_not_is_refused(server):
    with pytest.raises(PatinaError, match="has no model 'big'; it has: tiny, other"):
        ask(server, model="big")


def test_the_fingerprint_changes_with_what_is_asked(server):
    one = ask(server).fingerprint()
    assert one == ask(server).fingerprint()
    assert len({one, ask(server, prompt="how?").fingerprint(), ask(server, model="other").fingerprint()}) == 3
