"""A chat model behind an OpenAI-compatible endpoint: bounded, cached, and never above its cost cap.

In: messages. Out: the answer's text. Every answer is appended to a cache file under the hash of its request, so a run
that was stopped goes on without asking or paying twice. Busy and broken servers are asked again, with growing pauses;
what a server answers is checked for its form here and for its content by the caller. The standard library is enough.
"""

import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_ANSWER_BYTES = 4_000_000
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


class EndpointError(Exception):
    """The endpoint gave no usable answer to one request, after all retries."""


class CostCapReached(Exception):
    """The next request could pass the cap. What was answered so far is cached."""


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens; `max_dollars` None: no cap."""

    per_million_in: float = 0.0
    per_million_out: float = 0.0
    max_dollars: float | None = None


class ChatEndpoint:
    """`url` ends where `/chat/completions` begins, such as http://localhost:8000/v1. The key is taken from the
    environment variable OPENAI_API_KEY, where there is one; it is sent and never written."""

    def __init__(
        self, url: str, model: str, cache: Path, *, price: Price | None = None, timeout_seconds: float = 120.0,
        retries: int = 5, pause_seconds: float = 1.0,
    ):  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise UserError(f"the endpoint is '{url}'; expected an address such as http://localhost:8000/v1")
        self.url, self.model, self.price = url.rstrip("/") + "/chat/completions", model, price or Price()
        self.timeout_seconds, self.retries, self.pause_seconds = timeout_seconds, retries, pause_seconds
        self.dollars = 0.0  # of this experiment: answers in the cache were paid for too
        self.asked = 0
        self._lock, self._cache_path, self._reserved = threading.Lock(), cache, 0.0
        self._answers = self._read_cache()

    def ask(self, messages: Sequence[dict[str, str]], max_tokens: int) -> str:
        """The model's answer at temperature 0. Raises `EndpointError`, or `CostCapReached` before it would be paid."""
        request = {"model": self.model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
        body = json.dumps(request, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
        key = hashlib.sha256(body).hexdigest()
        if key in self._answers:
            return self._answers[key]
        most = self._dollars(len(body), max_tokens)  # a token is a byte at least: more than it can cost
        with self._lock:
            cap = self.price.max_dollars
            if cap is not None and self.dollars + self._reserved + most > cap:
                raise CostCapReached(f"${self.dollars:.4f} spent of {cap:g}; the next request may cost ${most:.4f}")
            self._reserved += most
        try:
            text, tokens_in, tokens_out = self._ask_again(body)
            record = {"key": key, "text": text, "tokens_in": tokens_in, "tokens_out": tokens_out}
            with self._lock:
                self._answers[key] = text
                self.dollars += self._dollars(tokens_in, tokens_out)
                with open(self._cache_path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        finally:
            with self._lock:
                self._reserved -= most
        return text

    def _ask_again(self, body: bytes) -> tuple[str, int, int]:
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause_seconds * 2 ** (attempt - 1))
            self.asked += 1
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {error.reason}"
                if error.code not in AGAIN:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
        raise EndpointError(f"{self.url}: {problem}")

    def _once(self, body: bytes) -> tuple[str, int, int]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=self.timeout_seconds) as reply:
            answer: Any = json.loads(reply.read(MAX_ANSWER_BYTES))
        try:
            text = answer["choices"][0]["message"]["content"]
            usage = answer.get("usage") or {}
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"the answer has no choices[0].message.content ({error!r})") from None
        if not isinstance(text, str):
            raise ValueError(f"the answer's content is {type(text).__name__}, not text")
        # A server that does not count is charged for bytes: too much, so that the cap holds.
        return text, tokens[0] or len(body), tokens[1] or len(text.encode("utf-8", "replace"))

    def _dollars(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price.per_million_in + tokens_out * self.price.per_million_out) / 1e6

    def _read_cache(self) -> dict[str, str]:
        """Answers of earlier runs; a line that a kill cut off is passed over."""
        found: dict[str, str] = {}
        if self._cache_path.is_file():
            for line in self._cache_path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    found[record["key"]] = record["text"]
                    self.dollars += self._dollars(record["tokens_in"], record["tokens_out"])
                except (ValueError, KeyError, TypeError):
                    continue
        self._cache_path.parent.mkdir(parents=True, exist_ok=True)
        if self._cache_path.is_file() and not self._cache_path.read_bytes().endswith(b"\n"):
            with open(self._cache_path, "a", encoding="utf-8") as file:
                file.write("\n")
        return found
