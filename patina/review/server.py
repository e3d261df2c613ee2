"""The server of the proof-reading page, on this machine's own address alone."""

import errno
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from patina.errors import PatinaError
from patina.review.captions import Proofs, Stale, about, count, save, snapshot
from patina.review.guard import (
    HEADERS,
    Refusal,
    check_origin,
    check_token,
    edits,
    length,
    parsed,
    place,
    texts,
)
from patina.review.thumbs import thumbnail

ADDRESS = "127.0.0.1"
IDLE_SECONDS = 60
"""How long a connection may say nothing."""
PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}


@dataclass(frozen=True)
class Answer:
    """What goes back: a status, and a body of a kind."""

    status: HTTPStatus
    body: bytes
    kind: str


@contextmanager
def serving(proofs: Proofs, port: int = 0) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """A server that listens, with the address to open; `serve_forever` answers. Port 0: any that is free.

    Raises PatinaError where the port is taken or not allowed. On leaving, a save that has begun is waited for.
    """
    token = secrets.token_urlsafe(32)
    try:
        server = ThreadingHTTPServer((ADDRESS, port), partial(Handler, proofs, token))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise PatinaError(f"port {port} cannot be used ({error.strerror}); give another --port, or none") from error
    try:
        yield server, f"http://{ADDRESS}:{server.server_port}/{token}/"
    finally:
        with proofs.saving:
            server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; what is asked is checked in guard.py before it is looked at."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Patina", ""
    timeout = IDLE_SECONDS

    def __init__(self, proofs: Proofs, token: str, *connection: Any) -> None:
        self.proofs, self.token = proofs, token
        super().__init__(*connection)

    def handle(self) -> None:
        """As the base does; a browser that goes away is no error."""
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def do_GET(self) -> None:
        self._reply(lambda: _given(self.proofs, self._asked(writes=False)))

    def do_POST(self) -> None:
        self._reply(lambda: _done(self.proofs, self._asked(writes=True), self.rfile.read(length(self.headers))))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the token is in the address."""

    def _asked(self, writes: bool) -> str:
        _, port = self.connection.getsockname()
        check_origin(self.headers, port, writes)
        return check_token(self.path, self.token)

    def _reply(self, answer: Callable[[], Answer]) -> None:
        try:
            reply = answer()
        except Refusal as refusal:
            # The body of what was refused may not have been read, and must not be taken for the next request.
            self.close_connection = True
            reply = _told(refusal.status, error=refusal.why)
        self.send_response(reply.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)


def _given(proofs: Proofs, what: str) -> Answer:
    if what in PAGE:
        name, kind = PAGE[what]
        return Answer(HTTPStatus.OK, (files("patina.review") / "page" / name).read_bytes(), kind)
    try:
        if what == "captions":
            return _told(HTTPStatus.OK, **about(proofs), **snapshot(proofs))
        folder, _, number = what.partition("/")
        if folder == "thumb":
            image = proofs.images[place(number, len(proofs.images))]
            return Answer(HTTPStatus.OK, thumbnail(proofs.folder, image), "image/jpeg")
    except PatinaError as error:
        return _told(HTTPStatus.UNPROCESSABLE_ENTITY, error=str(error))
    raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")


def _done(proofs: Proofs, what: str, body: bytes) -> Answer:
    if what == "count":
        (captions,) = parsed(body, ["captions"])
        return _told(HTTPStatus.OK, tokens=count(texts(captions)))
    if what == "save":
        return _saved(proofs, *parsed(body, ["version", "captions"]))
    raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")


def _saved(proofs: Proofs, version: Any, captions: Any) -> Answer:
    if not isinstance(version, str):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the version is a text")
    wanted = edits(captions, len(proofs.images))
    try:
        result = save(proofs, version, wanted)
        if isinstance(result, Stale):
            return _told(HTTPStatus.CONFLICT, **snapshot(proofs))
        return _told(HTTPStatus.OK, **result)
    except PatinaError as error:
        return _told(HTTPStatus.UNPROCESSABLE_ENTITY, error=str(error))
    except OSError as error:
        return _told(HTTPStatus.INSUFFICIENT_STORAGE, error=f"{proofs.table}: cannot be written ({error.strerror})")


def _told(status: HTTPStatus, **values: Any) -> Answer:
    return Answer(status, json.dumps(values).encode(), "application/json")
