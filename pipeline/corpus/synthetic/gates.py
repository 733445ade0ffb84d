"""What is wrong with a text that came back from a model, in a word: the reasons by which such texts are counted."""

import re

from pipeline.corpus.synthetic.forms import FORMS

COPY_SHARE = 0.5  # of a text's runs of words that stand in its seed document
RUN_WORDS = 8
REPEATED_SHARE = 0.3  # of its runs of words that it has said before
MOST_BYTES_A_TOKEN = 32  # no tokenizer packs text so densely: a longer answer is not what was asked for

_REFUSAL = re.compile(
    r"\A\W*(?:(?:i['’]?m|i am)\s+(?:very\s+)?(?:sorry|afraid|unable)|sorry\b|unfortunately,? i\b|i "
    r"(?:cannot|can['’]t|won['’]t)\b"
    r"|as an? (?:ai|artificial|large) |i apologi[sz]e)",
    re.IGNORECASE,
)
_CHATTER = re.compile(r"\A\W*(?:sure|certainly|of course|here(?:'s| is)|okay)\b[^\n]{0,200}:?\s*\n", re.IGNORECASE)
_WORD = re.compile(r"\w+")


def clean(text: str) -> str:
    """Without a first line that only talks to the asker, and without a fence around the whole."""
    text = _CHATTER.sub("", text.strip(), count=1).strip()
    whole = re.fullmatch(r"```(?:markdown|md)\n(.*)\n```", text, re.DOTALL)
    return (whole.group(1).strip() if whole else text) + "\n"


def problem(text: str, form: str, finish: str | None, max_tokens: int, excerpt: str | None) -> str | None:
    """Why a cleaned text is not kept, or None. `finish`: why the model stopped, `excerpt`: of its seed document."""
    if not text.strip():
        return "empty"
    if _REFUSAL.match(text):
        return "refusal"
    if len(text.encode("utf-8", "replace")) > MOST_BYTES_A_TOKEN * max_tokens:
        return "longer_than_asked"
    if finish == "length" or text.count("```") % 2:
        return "truncated"
    if "\ufffd" in text or "\x00" in text:
        return "broken_characters"
    runs = _runs(text)
    if len(runs) > 20 and 1 - len(set(runs)) / len(runs) > REPEATED_SHARE:
        return "repeats_itself"
    if excerpt is not None and runs and len(set(runs) & set(_runs(excerpt))) > COPY_SHARE * len(set(runs)):
        return "copy_of_seed"
    return FORMS[form].problem(text)


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return [tuple(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1)]
