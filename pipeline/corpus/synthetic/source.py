"""Texts that a model behind an OpenAI-compatible endpoint writes: textbook sections and exercises on topics, and
rewrites of one's own documents.

Asking comes first, in one process, so that the cost cap is one cap (`prepare`); what came back is then checked shard by
shard like the text of any other source (`items`), and code that the model wrote is run in isolation only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from pipeline.corpus.exercises.isolated import IsolatedRunner, NotIsolated
from pipeline.corpus.exercises.model_exercise import verify
from pipeline.corpus.synthetic.endpoint import (
    KEY_VARIABLE,
    Answer,
    ChatEndpoint,
    CostCapReached,
    Price,
    address_problem,
    ask_all,
    host_of,
)
from pipeline.corpus.synthetic.forms import (
    AUDIENCES,
    FORMS,
    TOPICS,
    Seed,
    clean_answer,
    make_seeds,
    problem,
    take_excerpts,
)
from pipeline.corpus.text.documents import RecordWriter, SetAside, read_records
from pipeline.corpus.text.source import Item, Limits, Source, check_limits, chosen, document
from pipeline.pages.private import OWN
from pipeline.storage.files import hash_json, root
from pipeline.storage.locks import FolderLock
from pipeline.system.errors import UserError
from pipeline.system.progress import progress

# Stands for this folder's code in the fingerprint: put another value here when what is asked, or how an answer is
# checked, changes.
CODE = "66a36e1ca174d837efc38ae465a94bd6a036e03b439b2778e5baecfaa9287631"
ANSWERS, REQUESTS = "answers.jsonl", "requests.jsonl"
FILTER = "synthetic"  # the name under which refused texts are counted
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Rewritten:
    """The source whose documents are rewritten: its name in the config, its section there, and itself."""

    name: str | None
    options: Mapping[str, Any]
    source: Source


class Synthetic(Source):
    """At most `count` texts that `model` at `endpoint` writes, in turn in each of `forms` (textbook, exercise; of
    documents: table, faq, tutorial, maths). `documents`: the name of another source, which rewrites are made from.
    `license`: of texts on topics (a rewrite has its document's); `terms`: under which the model's output may be used.
    `price_in`, `price_out`: dollars for a million tokens; `max_dollars`: never more, over all runs with these requests.
    `requests`: folder of the cache. `send_private`: documents of `license: own` may go to another machine.
    """

    without_effect: ClassVar[tuple[str, ...]] = (
        "documents", "concurrency", "timeout_seconds", "retries", "pause_seconds", "key_variable", "requests",
        "send_private",
    )  # fmt: skip

    def __init__(
        self, endpoint: str, model: str, count: int, license: str, terms: str, forms: Sequence[str] | None = None,
        documents: "Rewritten | None" = None, topics: Sequence[str] = TOPICS,
        audiences: Sequence[str] = AUDIENCES,
        seed: int = 0, max_tokens: int = 1500, temperature: float = 0.7, request: Mapping[str, Any] | None = None,
        excerpt_characters: int = 4000, price_in: float | None = None, price_out: float | None = None,
        max_dollars: float | None = None, concurrency: int = 4, timeout_seconds: float = 120.0, retries: int = 5,
        pause_seconds: float = 1.0, key_variable: str = KEY_VARIABLE, requests: str | None = None,
        send_private: bool = False, **common: Any,
    ):  # fmt: skip
        if wrong := address_problem(endpoint):
            raise ValueError(wrong)
        check_limits(count=count, max_tokens=max_tokens, excerpt_characters=excerpt_characters, concurrency=concurrency)
        self.host = host_of(endpoint)
        self.endpoint, self.model, self.count, self.license, self.terms = endpoint, model, count, license, terms
        if not isinstance(documents, Rewritten | None):
            raise ValueError(f"documents is {documents!r}; expected the name of another source")
        self.rewritten = documents
        possible = [name for name, form in FORMS.items() if documents is not None or not form.rewrites]
        self.forms = chosen(forms, FORMS, "forms") if forms is not None else tuple(possible)
        for form in set(self.forms) - set(possible):
            raise ValueError(f"forms has '{form}', a rewrite; expected `documents`, the name of the source to rewrite")
        self.topics, self.audiences = _texts(topics, "topics"), _texts(audiences, "audiences")
        self.seed, self.max_tokens, self.excerpt_characters = seed, max_tokens, excerpt_characters
        self.more = {"temperature": temperature, **dict(request or {})}
        self.concurrency, self.timeout_seconds, self.retries = concurrency, timeout_seconds, retries
        self.pause_seconds, self.key_variable, self.requests = pause_seconds, key_variable, requests
        self.send_private = send_private
        self.limits = Limits(**common)
        self.price = _price(endpoint, price_in, price_out, max_dollars)
        self._answers: Path | None = None

    def content_hash(self) -> str:
        """The seed documents, and the code that asks, checks and runs."""
        if self.rewritten is None:
            return hash_json([CODE, {}, None])
        elsewhere = ("path", "dataset", "weight", "filters", "replay")  # the content counts; the trainer reads weights
        described = {name: value for name, value in self.rewritten.options.items() if name not in elsewhere}
        return hash_json([CODE, described, self.rewritten.source.content_hash()])

    def libraries(self) -> tuple[str, ...]:
        return self.rewritten.source.libraries() if self.rewritten else ()

    def prepare(self, folder: Path) -> dict[str, Any]:
        """Asks for every text that is not in the cache, as far as `max_dollars` goes, and writes `answers.jsonl`.
        Facts: answered, failed, not asked for want of money, and what the seeds were drawn from."""
        if "exercise" in self.forms:
            _check_isolation()
        seeds = self._seeds()
        cache = self._cache()
        cache.mkdir(parents=True, exist_ok=True)
        with FolderLock(cache, wait=True):
            client = self._client(cache / REQUESTS)
            answers, failed, stopped = self._ask(client, seeds)
        self._answers = folder / ANSWERS
        with RecordWriter(self._answers) as records:
            for seed in seeds:
                if seed.number in answers:
                    found = answers[seed.number]
                    records.add({**seed.record(), "text": found.text, "finish": found.finish})
                elif seed.number in failed:
                    records.add({**seed.record(), "failed": failed[seed.number]})
        not_asked = len(seeds) - len(answers) - len(failed)
        if stopped:
            print(
                f"  synthetic: stopped at the cost cap: {stopped}; {not_asked:,} texts were not asked for", flush=True
            )
        print(f"  synthetic: {client.asked:,} requests, ${client.dollars:.4f} spent in all", flush=True)
        used = {"topics": len({s.topic for s in seeds if s.topic}), "forms": dict(Counter(s.form for s in seeds)),
                "documents": len({s.excerpt.path for s in seeds if s.excerpt})}  # fmt: skip
        return {"synthetic": {
            "model": self.model, "endpoint": self.host, "terms": self.terms, "seeds": len(seeds),
            "used": used, "answered": len(answers), "failed": len(failed), "not_asked": not_asked,
        }}  # fmt: skip

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        assert self._answers is not None, "prepare comes first"
        with ExitStack() as stack:
            runner = None
            for record in islice(read_records(self._answers), task, None, tasks):
                if record["form"] == "exercise" and runner is None:
                    runner = stack.enter_context(IsolatedRunner())
                yield self._item(record, runner)

    def _item(self, record: dict[str, Any], runner: IsolatedRunner | None) -> Item:
        path, excerpt = f"{record['form']}/{record['number']:06d}.md", record["excerpt"]
        if "failed" in record:
            return SetAside(path, "request_failed", record["failed"][:200])
        text = clean_answer(record["text"])
        wrong = problem(text, record["form"], record["finish"], self.max_tokens, excerpt and excerpt["text"])
        if wrong is None and runner is not None and record["form"] == "exercise":
            wrong = verify(text, runner)
        if wrong:
            return SetAside(path, wrong, text[:2_000], filter=FILTER)
        seed = {k: record[k] for k in ("form", "topic", "audience", "style", "difficulty", "prompt_hash") if record[k]}
        origin = {"model": self.model, "endpoint": self.host, "terms": self.terms, "seed": self.seed, **seed}
        more: dict[str, Any] = {"synthetic": origin}
        if excerpt:
            origin["document"] = excerpt["path"]
            more["group_source"] = self.rewritten and self.rewritten.name
        return document(
            text, path=path, group=excerpt["group"] if excerpt else f"topic/{record['topic']}",
            license=excerpt["license"] if excerpt else self.license, kind=FORMS[record["form"]].kind, **more,
        )  # fmt: skip

    def _ask(
        self, client: ChatEndpoint, seeds: Sequence[Seed]
    ) -> tuple[dict[int, Answer], dict[int, str], CostCapReached | None]:
        """Answers and failures by the number of their seed, and what stopped the asking. The cache comes first."""
        answers: dict[int, Answer] = {}
        failed: dict[int, str] = {}
        for seed in seeds:
            if (known := client.cached(seed.messages(), self.max_tokens, **self.more)) is not None:
                answers[seed.number] = known
        left = [seed for seed in seeds if seed.number not in answers]
        ask = lambda i: client.answer(left[i].messages(), self.max_tokens, **self.more)  # noqa: E731
        with progress("synthetic", len(left), "texts") as bar:
            try:
                for i, found in ask_all(ask, len(left), self.concurrency):
                    if isinstance(found, Answer):
                        answers[left[i].number] = found
                    else:
                        failed[left[i].number] = str(found)
                    bar.advance(1, f"${client.dollars:.4f}")
            except CostCapReached as cap:
                return answers, failed, cap
        return answers, failed, None

    def _seeds(self) -> list[Seed]:
        count = min(self.count, self.limits.limit_documents or self.count)
        excerpts = {}
        for form in self.forms:
            if self.rewritten is None or not FORMS[form].rewrites:
                continue
            key = f"{self.seed}/{form}"
            excerpts[form] = take_excerpts(self.rewritten.source.documents(0, 1), self.excerpt_characters, count, key)
            private = [e for e in excerpts[form] if e.license == OWN]
            if private and not self.send_private and self.host not in LOOPBACK:
                raise UserError(
                    f"{len(private):,} pieces of documents with license: own would be sent to {self.host}; "
                    "expected an endpoint on this machine, or your word that they may go there: send_private: true"
                )
        return list(make_seeds(count, self.forms, self.topics, self.audiences, excerpts, self.seed))

    def _client(self, cache: Path) -> ChatEndpoint:
        return ChatEndpoint(
            self.endpoint, self.model, cache, price=self.price, timeout_seconds=self.timeout_seconds,
            retries=self.retries, pause_seconds=self.pause_seconds, key_variable=self.key_variable,
        )  # fmt: skip

    def _cache(self) -> Path:
        """One for all experiments that ask the same model at the same address, unless the option names another."""
        if self.requests is not None:
            return Path(self.requests).expanduser()
        return root() / "artifacts" / ".requests" / hash_json([self.endpoint, self.model])[:12]


def _check_isolation() -> None:
    try:
        with IsolatedRunner():
            pass
    except NotIsolated as reason:
        raise UserError(
            f"exercises that a model wrote are run in namespaces only, and this machine gives none ({reason}); take "
            "'exercise' out of `forms`, or run this stage where `unshare --user --net true` works"
        ) from None


def _price(url: str, price_in: float | None, price_out: float | None, max_dollars: float | None) -> Price:
    for name, value in (("price_in", price_in), ("price_out", price_out), ("max_dollars", max_dollars)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise ValueError(f"{name} is {value!r}; expected dollars, at least 0")
    if host_of(url) not in LOOPBACK and (price_in is None or price_out is None):
        raise ValueError("price_in and price_out are not set; expected dollars for a million tokens (0: it is free)")
    price = Price(price_in or 0.0, price_out or 0.0, max_dollars)
    paid = price.per_million_in > 0 or price.per_million_out > 0
    if paid and max_dollars is None:
        raise ValueError("max_dollars is not set; expected the most that may be spent, as the model has a price")
    if max_dollars is not None and not paid:
        raise ValueError("max_dollars is set and the model has no price; expected price_in and price_out")
    return price


def _texts(values: Sequence[str], option: str) -> tuple[str, ...]:
    if isinstance(values, str) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise ValueError(f"{option} is {values!r}; expected a list of texts")
    return tuple(dict.fromkeys(values))
