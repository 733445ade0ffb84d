"""Personal data and secrets in a text: e-mail addresses, public IP addresses, access keys. Found, masked or dropped.

In: a text. Out: `mask`'s text with addresses reserved for documentation (RFC 2606, 5737, 3849) and `<key>` in their
place, with counts; `find`'s counts alone. Forms with a fixed beginning only: a key that looks like any other word is
not found. Nothing is touched that could be a program: `x@w.sum()`, `git@github.com:acme/tool.git`, `a[1::2]`,
`12:30:45`, `std::`. Four numbers with dots are an address, a version or a section by what stands around them: the
nearest word before them decides; where no word does, four small numbers are no address. Each search is led by
characters that clean text lacks.
"""

import ipaddress
import re
from collections.abc import Callable

from datatrove.data import Document

from data_filters.rule import KINDS, Decision, Drop, Rule, check_range

MASKED_EMAIL, MASKED_IP, MASKED_IP6, MASKED_KEY = "email@example.com", "192.0.2.1", "2001:db8::1", "<key>"
KINDS_OF_DATA = ("email", "ip", "key")

# Patterns begin with a literal, which `re` finds 10 times as fast as a class of characters; the part of an address
# before its @ is looked up backwards.
_DOMAIN = re.compile(
    r"@(?<=[A-Za-z0-9._%+-]@)(?!(?:[\w-]+\.)*example\.(?:com|org|net)\b)"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+"
    # Named endings only: `x@w.sum` is a matrix product, and masking it would break the program.
    r"(?:com|org|net|edu|gov|mil|int|info|io|dev|ai|me|co|uk|de|fr|nl|it|es|ch|at|be|se|no|fi|dk|pl|cz|ru|ua|jp|cn"
    r"|kr|in|au|nz|ca|br|us|eu)\b(?!\()"
)
_LOCAL_PART = re.compile(r"\b[A-Za-z0-9][A-Za-z0-9._%+-]*\Z")
# What names an account on a machine, not a mailbox: `git@host`, a path after `host:`, a part of an URL.
_REMOTE_USERS = ("git", "hg", "svn")
_REMOTE_PATH = re.compile(r":(?:\d+/|/|~|[\w.-]+/|[\w.-]+\.git\b)")
_IN_URL = re.compile(r"://[^\s/\"'<>]*\Z")
_LOGINS, _COPIES = ("ssh", "sftp", "mosh", "ssh-copy-id"), ("scp", "rsync", "sshfs")  # commands that take `user@host`
_ARGUMENT = re.compile(r"-\S|\d+\Z|[^\s,;:]*[/.~][^\s,;:]*[^\s,;:.]\Z|[.~]\Z")  # an option, its number, a path
LOCAL_PART_CHARACTERS = 64  # RFC 5321

_MAY_BE_IP4 = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d")
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\w)")
WORD_BEFORE_CHARACTERS = 40
VERSION_BELOW = 64  # one of 256 addresses has four numbers below it, and hardly a version has one that is not
_RESOLVERS = {"1.0.0.1", "1.1.1.1", "4.2.2.1", "4.2.2.2", "8.8.4.4", "8.8.8.8", "9.9.9.9"}  # the small ones in use
_SAYS_VERSION = re.compile(
    r"versions?(?![a-z])|(?<![a-z])(?:ver|v|releases?|released|rev|revision|builds?|upgraded?|downgraded?|updated?"
    r"|bump(?:s|ed)?|tags?|firmware|driver|sdk|chrome|chromium|firefox|parse|parse_version"
    r"|looseversion|strictversion|requires?|section|sections|sect|sec|chapter|clause|paragraph|para|article|figure|fig"
    r"|table|appendix|annex|example|exercise|theorem|lemma|definition|equation|eq|step|item|rule|level|heading|oid"
    r"|identifier)(?![a-z])|\u00a7|(?<!\s)(?=\s*[=<>~!]=\s?\Z)|(?:,\s?[<>]|\^|~>?)\s?\Z|(?<![\w./:])[a-z][\w.+]*[/-]\Z",
    re.IGNORECASE,
)
_SAYS_ADDRESS = re.compile(
    r"(?<![a-z])(?:ips?|ipv4|ip4|inet|addr|addrs|address|addresses|hosts?|hostname|nameservers?|dns|ping|ssh|scp|telnet"
    r"|curl|wget|gateway|subnet|netmask|network|proxy|peer|router?|listen|bind|connect|connected|connecting|connection"
    r"|clients?|visitor|login|banned|blocked|port|a record)(?![a-z])|ip4/\Z|://\Z"
    r"|(?<![\w-])(?:root|admin|user|ubuntu|debian|ec2-user|pi)@\Z",
    re.IGNORECASE,
)
_PORT_OR_LOG = re.compile(r":\d{2,5}\b|/(?:[89]|[12]\d|3[0-2])\b|\s+-\s+\S+\s+\[")  # :8080, /24, a server's log
# From the first colon on: groups of hex digits; `ipaddress` decides, and only global unicast (2000::/3) counts.
_IP6_TAIL = re.compile(
    r":(?<=[23][0-9A-Fa-f]{3}:)(?<![\w:.][23][0-9A-Fa-f]{3}:)"
    r"(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:.])"
)
_SAYS = (_SAYS_VERSION, _SAYS_ADDRESS)

# Lengths and alphabets as the makers of the keys document them. A gate is what any of its keys must hold.
_GATED_KEYS: tuple[tuple[re.Pattern[str], tuple[re.Pattern[str], ...]], ...] = (
    (
        re.compile(r"_[A-Za-z0-9]{16}"),
        (
            re.compile(r"gh(?<!\wgh)[oprsu]_[A-Za-z0-9]{36,251}\b"),  # GitHub
            re.compile(r"github_pat_(?<!\wgithub_pat_)[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b"),
            re.compile(r"hf_(?<!\whf_)[A-Za-z0-9]{34}\b"),  # Hugging Face
            re.compile(r"sk_live_(?<!\wsk_live_)[A-Za-z0-9]{16,}\b"),  # Stripe; its test keys open nothing
            re.compile(r"rk_live_(?<!\wrk_live_)[A-Za-z0-9]{16,}\b"),
        ),
    ),
    (
        re.compile(r"-[A-Za-z0-9_-]{19}"),
        (
            re.compile(r"glpat-(?<!\wglpat-)[A-Za-z0-9_-]{20,}(?![\w-])"),  # GitLab
            re.compile(r"xox(?<!\wxox)[abeoprs]-[A-Za-z0-9-]{20,}(?![\w-])"),  # Slack
            # Anthropic and OpenAI
            re.compile(r"sk-(?<!\wsk-)(?:(?:ant|proj|svcacct|admin)-[A-Za-z0-9_-]{32,}|[A-Za-z0-9]{48})(?![\w-])"),
        ),
    ),
)
_MARKED_KEYS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("AKIA", re.compile(r"AKIA(?<!\wAKIA)[A-Z2-7]{16}\b(?<!EXAMPLE)")),  # Amazon
    ("ASIA", re.compile(r"ASIA(?<!\wASIA)[A-Z2-7]{16}\b(?<!EXAMPLE)")),
    ("AIza", re.compile(r"AIza(?<!\wAIza)[A-Za-z0-9_-]{35}(?![\w-])")),  # Google
    (".eyJ", re.compile(r"eyJ(?<!\weyJ)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}(?![\w-])")),  # JWT
)
# A body ends at the next five dashes, so that a thousand beginnings without an end are not read a thousand times.
# Only the key's body is masked: the lines that frame it say what it was, and in code they may be compared with.
_PEM = re.compile(
    r"(-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----)((?:(?!-----)[A-Za-z0-9+/=\s\\:,.\-\"'#*]){64,16384}?)"
    r"(-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----)"
)


def mask(text: str, kinds: tuple[str, ...] = KINDS_OF_DATA) -> tuple[str, dict[str, int]]:
    """The text without personal data of these kinds, and how many of each there were.

    Masks stay inside a string literal, comment or prose: no quote, no backslash, no line end.
    """
    counts: dict[str, int] = {kind: 0 for kind in KINDS_OF_DATA}

    def replace(kind: str, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str | None]) -> None:
        nonlocal text

        def one(match: re.Match[str]) -> str:
            masked = new(match)
            if masked is None:
                return match.group(0)
            counts[kind] += 1
            return masked

        text = pattern.sub(one, text)

    if "key" in kinds:
        for gate, patterns in _GATED_KEYS:
            if gate.search(text):
                for pattern in patterns:
                    replace("key", pattern, lambda match: MASKED_KEY)
        for mark, pattern in _MARKED_KEYS:
            if mark in text:
                replace("key", pattern, lambda match: MASKED_KEY)
        if "PRIVATE KEY" in text:
            replace("key", _PEM, _mask_pem)
    if "email" in kinds and "@" in text:
        text, counts["email"] = _mask_emails(text)
    if "ip" in kinds:
        if _MAY_BE_IP4.search(text):
            replace("ip", _IP4, _mask_ip4)
        text, n_ip6 = _mask_ip6(text)
        counts["ip"] += n_ip6
    return text, counts


def find(text: str) -> dict[str, int]:
    """How many e-mail addresses, public IP addresses and keys a text holds."""
    return mask(text)[1]


class PersonalData(Rule):
    """Drops texts with more than `max_emails` e-mail addresses, `max_ips` public IP addresses or `max_keys` keys."""

    kinds = KINDS

    def __init__(self, max_emails: int | None = 0, max_ips: int | None = 0, max_keys: int | None = 0):
        self.limits = {"key": max_keys, "email": max_emails, "ip": max_ips}
        for kind, limit in self.limits.items():
            check_range(f"max_{kind}s", limit, 0)

    def filter(self, doc: Document) -> Decision:
        counts = find(doc.text)
        for kind, limit in self.limits.items():
            if limit is not None and counts[kind] > limit:
                return False, Drop(kind, counts[kind], limit)
        return True


def _mask_emails(text: str) -> tuple[str, int]:
    spans, end = [], 0
    for domain in _DOMAIN.finditer(text):
        at = domain.start()
        local = _LOCAL_PART.search(text, max(end, at - LOCAL_PART_CHARACTERS), at)
        if local and not _is_remote(text, local, domain):
            end = domain.end()
            spans.append((local.start(), end))
    return _replace_spans(text, spans, MASKED_EMAIL)


def _is_remote(text: str, local: re.Match[str], domain: re.Match[str]) -> bool:
    """Whether `user@host` is where a program logs in, as in `git@github.com:acme/tool.git` and `ssh://me@host.org/`."""
    before = text[max(0, local.start() - 2 * LOCAL_PART_CHARACTERS) : local.start()].rpartition("\n")[2]
    return (
        local.group(0) in _REMOTE_USERS
        or _REMOTE_PATH.match(text, domain.end()) is not None
        or _IN_URL.search(before) is not None
        or _is_login(before, is_copy=text.startswith(":", domain.end()))
    )


def _is_login(before: str, *, is_copy: bool) -> bool:
    """Whether what stands before is a command that takes `user@host`, as in `ssh -p 22 me@acme.org`."""
    words = [word.lstrip("`'\"($") for word in before.split()]
    at = next((i for i in range(len(words) - 1, -1, -1) if words[i] in _LOGINS + _COPIES), None)
    if at is None or not before.endswith((" ", "\t", "'", '"')):
        return False
    between = words[at + 1 :]
    return all(map(_ARGUMENT.match, between)) or (is_copy and words[at] in _COPIES and len(between) <= 4)


def _mask_ip6(text: str) -> tuple[str, int]:
    spans = []
    for tail in _IP6_TAIL.finditer(text):
        start, end = tail.start() - 4, tail.end()
        try:
            # Two groups around `::` may be a slice, as in `x[2000::3]`.
            if ipaddress.IPv6Address(text[start:end]).is_global and sum(map(bool, text[start:end].split(":"))) > 2:
                spans.append((start, end))
        except ValueError:  # times, slices, MAC addresses
            continue
    return _replace_spans(text, spans, MASKED_IP6)


def _replace_spans(text: str, spans: list[tuple[int, int]], new: str) -> tuple[str, int]:
    pieces, done = [], 0
    for start, end in spans:
        pieces += [text[done:start], new]
        done = end
    return ("".join([*pieces, text[done:]]) if spans else text), len(spans)


def _mask_ip4(match: re.Match[str]) -> str | None:
    try:
        address = ipaddress.IPv4Address(match.group(0))
    except ValueError:  # 1.2.300.4 and version numbers of four parts with leading zeros
        return None
    public = address.is_global and not address.is_multicast
    return MASKED_IP if public and not _is_version(match) else None


def _is_version(match: re.Match[str]) -> bool:
    """Whether four numbers with dots are no address but a version or the number of a section."""
    before = match.string[max(0, match.start() - WORD_BEFORE_CHARACTERS) : match.start()].rpartition("\n")[2]
    version, address = (max((found.end() for found in p.finditer(before)), default=-1) for p in _SAYS)
    if version != address:
        return version > address
    if match.group(0) in _RESOLVERS or _PORT_OR_LOG.match(match.string, match.end()):
        return False
    return all(int(number) < VERSION_BELOW for number in match.group(0).split("."))


def _mask_pem(match: re.Match[str]) -> str | None:
    if len(re.sub(r"[^A-Za-z0-9+/]", "", match.group(2))) < 64:
        return None  # a placeholder in a test or manual
    return match.group(1) + MASKED_KEY + match.group(3)
