"""Captions from an OpenAI-compatible server (vLLM, llama.cpp, LM Studio, Ollama, ...), several requests at a time."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from PIL import Image

from patina.caption.asking import MAX_TOKENS, PROMPT, with_hint
from patina.caption.captioner import Caption
from patina.errors import PatinaError

if TYPE_CHECKING:
    import torch

URL = "http://127.0.0.1:8000/v1"
SIDE = 1024
"""Longest side of the picture that is sent."""

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try, unless the server says how long it wants to be left alone."""

LONGEST_PAUSE = 60.0
BUSY = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Answers that another try may change."""


class _Busy(Exception):
    """A try that failed in a way that another may not; `pause` is the server's own wish, in seconds."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class ServerCaptioner:
    """Captions by the model of a server; `key` is sent as the bearer token, to that address alone."""

    kind: Literal["caption", "tags"] = "caption"

    def __init__(
        self,
        model: str = "",
        *,
        url: str = URL,
        key: str = "",
        prompt: str | None = None,
        max_tokens: int = MAX_TOKENS,
        seed: int = 0,
        seconds: float = 120,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self.name = f"{url} {model}".rstrip()
        self._address = urlsplit(url.rstrip("/"))
        if self._address.scheme not in ("http", "https") or not self._address.hostname:
            raise PatinaError(f"--url {url}: not an address; write for example {URL}")
        self._model, self._key, self._seed = model, key, seed
        self._prompt = PROMPT if prompt is None else prompt
        self._max_tokens, self._seconds, self._pauses = max_tokens, seconds, tuple(pauses)

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Ask the server which models it has. Raises PatinaError where it cannot be reached or lacks the one wanted."""
        listed = self._request("GET", "/models")
        known = [one["id"] for one in listed.get("data", [])]
        if not known or (self._model and self._model not in known):
            has = ", ".join(known) or "none"
            raise PatinaError(f"{self.name}: the server has no model {self._model!r}; it has: {has}")
        self._model = self._model or known[0]

    def prepare(self, image: Image.Image) -> str:
        """One RGB picture to the data address that is sent."""
        scale = min(1.0, SIDE / max(image.size))
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        stream = BytesIO()
        image.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
        return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()

    def generate(self, batch: Sequence[str], hints: Sequence[str] = ()) -> list[Caption]:
        """One caption a picture, asked for all at once. Raises PatinaError when the server goes on refusing."""
        with ThreadPoolExecutor(len(batch)) as pool:
            return list(pool.map(self._caption, batch, hints or [""] * len(batch)))

    def fingerprint(self) -> str:
        """Twelve hex digits of the address, the model's name and the settings; weights cannot be seen from here."""
        told = (self._address.geturl(), self._model, self._prompt, self._max_tokens, self._seed)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:12]

    def _caption(self, picture: str, hint: str) -> Caption:
        question = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": with_hint(self._prompt, hint)},
        ]
        answer = self._request(
            "POST",
            "/chat/completions",
            {
                "model": self._model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": self._max_tokens,
                "temperature": 0,
                "seed": self._seed,
            },
        )
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] or ""
        except (LookupError, TypeError) as error:
            raise PatinaError(f"{self.name}: its answer holds no caption ({json.dumps(answer)[:200]})") from error
        return Caption(" ".join(text.split()), truncated=choice.get("finish_reason") == "length")

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask, and ask again after a while where that may help."""
        for pause in (*self._pauses, None):
            try:
                return self._once(method, path, body)
            except _Busy as busy:
                if pause is None:
                    raise PatinaError(
                        f"{self.name}: {busy} after {len(self._pauses) + 1} tries; does it run, is --url right?"
                    ) from busy
                time.sleep(min(busy.pause or pause, LONGEST_PAUSE))
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        status, headers, data = self._exchange(method, self._address.path + path, body)
        if status in BUSY:
            raise _Busy(f"answers {status} {_said(data)}".rstrip(), _seconds(headers.get("Retry-After")))
        if status != 200:
            remedy = "give the key with --key-env NAME" if status in (401, 403) else "see the server's own log"
            raise PatinaError(f"{self.name}: answers {status} {_said(data)}; {remedy}")
        try:
            return json.loads(data)
        except ValueError as error:
            raise PatinaError(f"{self.name}: does not answer in JSON; is --url right? It ends in /v1 mostly") from error

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any, bytes]:
        """One request; redirections are not followed, so that pictures and key go where the user said."""
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        address = self._address
        connection = kinds[address.scheme](address.hostname or "", address.port, timeout=self._seconds)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise _Busy(f"does not answer ({error or type(error).__name__})") from error
        finally:
            connection.close()


def _said(data: bytes) -> str:
    """What the server says went wrong, in one line."""
    return " ".join(data.decode("utf-8", "replace").split())[:200]


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.replace(".", "", 1).isdigit() else None
