"""A chat model behind an OpenAI-compatible endpoint: bounded, cached, and never above its cost cap.

In: messages. Out: the answer's text. Every answer is appended to a cache file under the hash of its request, so a
stopped run resumes without asking or paying twice. Busy and broken servers are asked again, with growing pauses or
after the time that they name. The form of an answer is checked here, its content by the caller.

Money: before a request is sent, the most that it can cost is written into the cache file. It counts until an answer
says less or the server refuses; so a request that timed out, and one that a kill cut off, count in full.

`ask_all` sends many requests, a few at a time, as far as the money goes. Threads that still wait when the process is
stopped end with it; the next run asks again.
"""

import hashlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pipeline.system.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_ANSWER_BYTES = 4_000_000
MAX_PAUSE_SECONDS = 120.0  # also where a server asks for more
MOST_BYTES_A_TOKEN = 16  # a server that counts fewer tokens than this makes of its own text is not believed
UNKNOWN = (408, 502, 504)  # a proxy gave up: whether the model answered, and must be paid, is unknown
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)

MOST_FAILURES = 5  # one after another: more requests would fail too


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


@dataclass(frozen=True)
class Answer:
    """`finish`: why the model stopped ("stop", "length", ...), as the server says; None where it does not."""

    text: str
    finish: str | None = None


class ChatEndpoint:
    """`url` ends where `/chat/completions` begins, such as http://localhost:8000/v1. The key is taken from the
    environment variable `key_variable`, where there is one; it is sent to that address only and never written."""

    def __init__(
        self, url: str, model: str, cache: Path, *, price: Price | None = None, timeout_seconds: float = 120.0,
        retries: int = 5, pause_seconds: float = 1.0, key_variable: str = KEY_VARIABLE,
    ):  # fmt: skip
        if problem := address_problem(url):
            raise UserError(problem)
        self.url, self.model, self.price = url.rstrip("/") + "/chat/completions", model, price or Price()
        self.timeout_seconds, self.retries, self.pause_seconds = timeout_seconds, retries, pause_seconds
        self.dollars = 0.0  # spent or not known to be unspent, over all runs with this cache
        self.asked = 0
        self._key = _read_key(key_variable)
        self._lock, self._cache_path, self._reserved = threading.Lock(), cache, 0.0
        self._answers = self._read_cache()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, messages: Sequence[dict[str, str]], max_tokens: int) -> str:
        """The model's answer at temperature 0. Raises `EndpointError`, or `CostCapReached` before it would be paid."""
        return self.answer(messages, max_tokens).text

    def answer(self, messages: Sequence[dict[str, str]], max_tokens: int, **more: Any) -> Answer:
        """The same with why the model stopped. `more`: further fields of the request, such as `temperature`."""
        key, body = self._request(messages, max_tokens, more)
        with self._lock:
            if key in self._answers:
                return self._answers[key]
        return self._ask_again(key, body, max_tokens)

    def cached(self, messages: Sequence[dict[str, str]], max_tokens: int, **more: Any) -> Answer | None:
        """The answer that an earlier request got, without asking."""
        return self._answers.get(self._request(messages, max_tokens, more)[0])

    def _request(
        self, messages: Sequence[dict[str, str]], max_tokens: int, more: Mapping[str, Any]
    ) -> tuple[str, bytes]:
        """(key in the cache, body). A field of `more` that is None takes it out of the request."""
        fields = {"model": self.model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens, **more}
        request = {name: value for name, value in fields.items() if value is not None}
        body = json.dumps(request, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
        return hashlib.sha256(body).hexdigest(), body

    def _ask_again(self, key: str, body: bytes, max_tokens: int) -> Answer:
        problem, pause = "", self.pause_seconds
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(pause, MAX_PAUSE_SECONDS))
                pause = self.pause_seconds * 2**attempt
            most = self._reserve(key, body, max_tokens)
            try:
                answer, tokens = self._once(body, max_tokens)
            except urllib.error.HTTPError as error:
                unknown = error.code in UNKNOWN  # else nothing was written, and nothing is paid
                self._settle(key, most, most if unknown else 0.0, None if unknown else {"refused": error.code})
                problem = f"HTTP {error.code} {error.reason}"
                error.close()
                if error.code not in AGAIN:
                    break
                pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except urllib.error.URLError as error:
                unsent = isinstance(error.reason, ConnectionRefusedError | socket.gaierror)
                self._settle(key, most, 0.0 if unsent else most, {"refused": "no connection"} if unsent else None)
                problem = f"{type(error).__name__}: {error}"
            except (OSError, http.client.HTTPException, ValueError, ArithmeticError) as error:
                self._settle(key, most, most, None)  # perhaps written and charged, whatever came of it
                problem = f"{type(error).__name__}: {error}"
            else:
                record = {"text": answer.text, "finish": answer.finish, "tokens_in": tokens[0], "tokens_out": tokens[1]}
                self._settle(key, most, self._dollars(*tokens), record, answer)
                return answer
        raise EndpointError(f"{self.url}: {problem}")

    def _reserve(self, key: str, body: bytes, max_tokens: int) -> float:
        """The most that one request can cost (a token is a byte at least), set aside before it is sent."""
        most = self._dollars(len(body), max_tokens)
        with self._lock:
            cap = self.price.max_dollars
            if cap is not None and self.dollars + self._reserved + most > cap:
                raise CostCapReached(f"${self.dollars:.4f} spent of {cap:g}; the next request may cost ${most:.4f}")
            self._write({"key": key, "at_most": [len(body), max_tokens]})
            self._reserved += most
            self.asked += 1
        return most

    def _settle(
        self, key: str, most: float, dollars: float, record: dict[str, Any] | None, answer: Answer | None = None
    ) -> None:
        """What became of a request; `record` None: unknown, so it stays at its most in the cache file."""
        with self._lock:
            self._reserved -= most
            self.dollars += dollars
            if answer is not None:
                self._answers[key] = answer
            if record is not None:
                self._write({"key": key, **record})

    def _write(self, record: dict[str, Any]) -> None:
        with open(self._cache_path, "a", encoding="utf-8", errors="replace") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _once(self, body: bytes, max_tokens: int) -> tuple[Answer, tuple[int, int]]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        with self._opener.open(request, timeout=self.timeout_seconds) as reply:
            content = _read(reply, self.timeout_seconds)
        try:
            answer: Any = json.loads(content)
            choice = answer["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
            usage = answer.get("usage") or {}
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"the answer has no choices[0].message.content ({error!r})") from None
        if not isinstance(text, str):
            raise ValueError(f"the answer's content is {type(text).__name__}, not text")
        written = text.encode("utf-8", "replace")  # halves of surrogate pairs cannot be written
        counted = (_believable(tokens[0], len(body), len(body)), _believable(tokens[1], len(written), max_tokens))
        return Answer(written.decode(), finish if isinstance(finish, str) else None), counted

    def _dollars(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price.per_million_in + tokens_out * self.price.per_million_out) / 1e6

    def _read_cache(self) -> dict[str, Answer]:
        """Answers of earlier runs, and what all requests cost; a line that a kill cut off is skipped."""
        found: dict[str, Answer] = {}
        unsettled: dict[str, list[tuple[int, int]]] = defaultdict(list)
        path = self._cache_path
        content = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in content.split("\n"):
            try:
                record = json.loads(line)
                key = record["key"]
                if "at_most" in record:
                    unsettled[key].append((int(record["at_most"][0]), int(record["at_most"][1])))
                    continue
                if "refused" not in record:
                    tokens = int(record["tokens_in"]), int(record["tokens_out"])
                    found[key] = Answer(str(record["text"]), record.get("finish"))
                    self.dollars += self._dollars(*tokens)
                if unsettled[key]:
                    unsettled[key].pop()
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
                continue
        self.dollars += sum(self._dollars(*tokens) for left in unsettled.values() for tokens in left)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content and not content.endswith("\n"):
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n")
        return found


def host_of(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or ""


def address_problem(url: str) -> str | None:
    """Why an address cannot be asked, or None. An address that carries a key is not repeated in the message."""
    if not url.startswith(("http://", "https://")):
        return f"the endpoint is '{url}'; expected an address such as http://localhost:8000/v1"
    parts = urllib.parse.urlsplit(url)
    if "@" in parts.netloc or parts.query:
        return (
            "the endpoint's address has a name, a password or a query; expected the address alone, and the key in the "
            f"environment ({KEY_VARIABLE})"
        )
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An endpoint that sends elsewhere is an error: the key and the text are for the named address only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _read(reply: Any, timeout_seconds: float) -> bytes:
    """The body, if it comes within the time and is no larger than an answer can be. Raises `TimeoutError` (each read
    has its own limit too, which ends a server that sends a byte at a time) and `ValueError`."""
    parts: list[bytes] = []
    size, end = 0, time.monotonic() + timeout_seconds
    while part := reply.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is larger than {MAX_ANSWER_BYTES:,} bytes")
        if time.monotonic() > end:
            raise TimeoutError("the answer did not end in time")
    return b"".join(parts)


def _believable(tokens: int, n_bytes: int, most: int) -> int:
    """What a server says it counted. One that does not count is charged for bytes, one that counts too little for the
    fewest tokens that the text can be, up to the `most` that were asked for: too much rather than too little, so that
    the cap holds."""
    least = n_bytes // MOST_BYTES_A_TOKEN if tokens > 0 else n_bytes
    return max(tokens, min(least, most))


def _seconds(retry_after: str | None) -> float:
    """A `Retry-After` header in seconds; 0 for none, and for a date."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0


def _read_key(variable: str) -> str | None:
    """Raises `UserError` for a key that no header can carry, without saying it."""
    key = (os.environ.get(variable) or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {variable} holds characters that no API key has; set it again")
    return key or None


def ask_all(ask: Callable[[int], Any], count: int, concurrency: int) -> Iterator[tuple[int, Any]]:
    """Raises `CostCapReached` once a request could pass the cap and none is under way that might turn out cheaper;
    `UserError` where the endpoint fails again and again; and whatever else `ask` raises."""
    results: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
    pending, running, waiting, failed = deque(range(count)), 0, False, 0

    def work(number: int) -> None:
        try:
            results.put((number, ask(number), None))
        except BaseException as error:
            results.put((number, None, error))

    while pending or running:
        while pending and running < concurrency and not waiting:
            threading.Thread(target=work, args=(pending.popleft(),), daemon=True).start()
            running += 1
        number, answer, error = results.get()
        running -= 1
        waiting = False
        if isinstance(error, CostCapReached):
            # The cap counts requests under way at their most. One may cost less, so this one waits for them first.
            if not running:
                raise error
            pending.appendleft(number)
            waiting = True
        elif isinstance(error, EndpointError):
            failed += 1
            if failed >= MOST_FAILURES:
                raise UserError(
                    f"the endpoint failed {failed} times in a row, last: {error}. The answers are kept; the same "
                    "command resumes"
                )
            yield number, error
        elif error is not None:
            raise error
        else:
            failed = 0
            yield number, answer
