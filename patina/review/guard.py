"""What a request must bring before it is listened to: where it came from, the token, a body of a bounded size."""

import hmac
import json
from collections.abc import Sequence
from email.message import Message
from http import HTTPStatus
from typing import Any

MAX_BODY = 16 * 2**20
"""Bytes of a request: forty thousand long captions."""
MAX_CAPTION = 10_000
"""Characters of a caption; a table's field may have 131,072."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Sent with every answer: the page may load its own files and nothing else, and nobody may frame or embed it."""


class Refusal(Exception):
    """A request that is not served, with the sentence that says why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


def check_origin(headers: Message, port: int, writes: bool) -> None:
    """Refuse names that merely resolve to this machine (DNS rebinding) and other sites' requests (CSRF)."""
    hosts = [f"{name}:{port}" for name in ("127.0.0.1", "localhost")]
    if (found := headers.get_all("Host", [])) not in [[host] for host in hosts]:
        raise Refusal(HTTPStatus.FORBIDDEN, f"this server is called {hosts[0]}, not {' '.join(found) or 'nothing'}")
    origins = headers.get_all("Origin", [])
    if (writes or origins) and origins != [f"http://{found[0]}"]:
        raise Refusal(HTTPStatus.FORBIDDEN, "only the page of this server may ask")


def check_token(path: str, token: str) -> str:
    """What follows the token in the path: `/TOKEN/captions` gives `captions`."""
    given, slash, rest = path.removeprefix("/").partition("/")
    if not slash or not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
        raise Refusal(HTTPStatus.FORBIDDEN, "the address lacks the token; open the one that the command printed")
    return rest


def length(headers: Message) -> int:
    """Bytes of the body that follows. Raises Refusal where it is not said, or more than MAX_BODY."""
    said = headers.get_all("Content-Length", [])
    if "Transfer-Encoding" in headers or len(said) != 1 or not (said[0].isascii() and said[0].isdigit()):
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, "say the length of the body")
    if len(said[0]) > 12 or int(said[0]) > MAX_BODY:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY} bytes are taken")
    if headers.get_content_type() != "application/json":
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
    return int(said[0])


def parsed(body: bytes, keys: Sequence[str]) -> list[Any]:
    """The values of a JSON object that has exactly these keys."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is no JSON") from error
    if not isinstance(value, dict) or set(value) != set(keys):
        raise Refusal(HTTPStatus.BAD_REQUEST, f"send an object with {' and '.join(keys)}")
    return [value[key] for key in keys]


def texts(values: Any) -> list[str]:
    """A list of texts."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Refusal(HTTPStatus.BAD_REQUEST, "captions are texts")
    return values


def edits(values: Any, pictures: int) -> dict[int, str]:
    """Captions by the place of their picture, none too long for a table."""
    if not isinstance(values, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "captions are an object: the place of a picture, and its caption")
    if any(len(value) > MAX_CAPTION for value in texts(list(values.values()))):
        raise Refusal(HTTPStatus.BAD_REQUEST, f"a caption has at most {MAX_CAPTION} characters; shorten it")
    return {place(key, pictures): value for key, value in values.items()}


def place(text: str, pictures: int) -> int:
    """The place of a picture in the list: digits and nothing else."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) < pictures):
        raise Refusal(HTTPStatus.NOT_FOUND, "there is no such picture")
    return int(text)
