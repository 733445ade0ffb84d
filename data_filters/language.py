"""Which language a page is written in, offline: py3langid's model lies inside its wheel (a descendant of langid.py,
Lui and Baldwin, ACL 2012 system demonstrations).

In: a document. Out: `metadata["language"]` and `metadata["language_score"]` (datatrove's names) and the decision. Only
the head is read, 0.3 ms a thousand characters: of 331 packaged English pages 1,000 characters leave 18 unsure, 2,000
and 5,000 leave 4. One model per process (0.6 s, 120 MB), shared by all rules and inherited by forked workers.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from datatrove.data import Document

from data_filters.rule import PROSE, Decision, Drop, Rule, check_range

# The labels of the model, `zxx` being no language (tables, link lists). Written down, so that a config is checked
# without loading it; a test compares.
LANGUAGES = (
    "af", "am", "ar", "as", "az", "be", "bg", "bn", "br", "bs", "ca", "cs", "cy", "da", "de", "el", "en", "eo",
    "es", "et", "eu", "fa", "fi", "fr", "fy", "ga", "gd", "gl", "gu", "ha", "he", "hi", "hr", "ht", "hu", "hy",
    "id", "ig", "is", "it", "ja", "jv", "ka", "kk", "km", "kn", "ko", "ku", "ky", "la", "lg", "ln", "lo", "lt",
    "lv", "mg", "mk", "ml", "mn", "mr", "ms", "my", "ne", "nl", "no", "om", "or", "pa", "pl", "ps", "pt", "qu",
    "ro", "ru", "sa", "si", "sk", "sl", "so", "sq", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "ug", "uk",
    "ur", "uz", "vi", "xh", "yo", "zh", "zu", "zxx", "ace", "bcl", "dz", "ext", "gcf", "gom", "grc", "gug", "hbo",
    "kik", "nso", "pcm", "rw", "se", "sn", "st", "an", "ary", "crh", "fo", "fuv", "gcr", "guw", "kab", "lb",
    "lij", "ltg", "uzs", "wa", "sdh", "arz", "ba", "mt", "nn", "oc", "tg", "tk", "tt", "vec", "vo", "wuu", "yue",
)  # fmt: skip

_LAST_LATIN = "\u024f"


class Language(Rule):
    """Drops prose that is not in one of `languages` (ISO 639-1), or not with `min_probability`.

    The first `head_characters` decide. A text of fewer letters than `min_letters`, all of them Latin (a heading), is
    kept, as nothing sure can be said of it. `prior`: how probable one of `languages` is before anything is read; set it
    for a source (`data.sources.<name>.filters.language.prior`) of which more is known. Writes the language found to
    `metadata["language"]`.
    """

    kinds, libraries = (PROSE,), ("py3langid",)

    def __init__(
        self, languages: Sequence[str] = ("en",), min_probability: float = 0.65, head_characters: int = 2_000,
        min_letters: int = 30, prior: float = 0.5,
    ):  # fmt: skip
        if isinstance(languages, str) or not languages:
            raise ValueError(f"languages is {languages!r}; expected a list of ISO 639-1 codes such as [en]")
        unknown = [code for code in languages if code not in LANGUAGES]
        if unknown:
            raise ValueError(f"languages holds {', '.join(map(repr, unknown))}; expected some of {' '.join(LANGUAGES)}")
        check_range("min_probability", min_probability, 0, 1, optional=False)
        check_range("head_characters", head_characters, 1, optional=False)
        self.languages, self.min_probability = frozenset(languages), min_probability
        check_range("min_letters", min_letters, 0, optional=False)
        if not 0 < prior < 1:
            raise ValueError(f"prior is {prior!r}; expected a probability between 0 and 1, both left out")
        self.head_characters, self.min_letters, self.prior = head_characters, min_letters, prior

    def filter(self, doc: Document) -> Decision:
        head = doc.text[: self.head_characters]
        n_letters = sum(map(str.isalpha, head))
        language, probability = identify(head, self.languages if n_letters else (), self.prior)
        doc.metadata["language"], doc.metadata["language_score"] = language, round(probability, 4)
        if 0 < n_letters < self.min_letters and max(head) <= _LAST_LATIN:
            return True
        if language not in self.languages:
            wanted = ", ".join(sorted(self.languages))
            return False, Drop("other_language", f"{language} {probability:.2f}", wanted)
        if probability < self.min_probability:
            return False, Drop("unsure_language", round(probability, 4), self.min_probability)
        return True


def identify(text: str, expected: Collection[str] = (), prior: float = 0.5) -> tuple[str, float]:
    """The most probable language and its probability, where one of `expected` is written with probability `prior`, and
    all languages are as probable where none is expected. A text without letters is a guess near 0."""
    ranked = _model().rank(text)
    if not expected:
        return ranked[0]
    weights = {True: prior / len(expected), False: (1 - prior) / max(1, len(ranked) - len(expected))}
    weighted = [(language, probability * weights[language in expected]) for language, probability in ranked]
    language, most = max(weighted, key=lambda pair: pair[1])
    return language, most / (sum(weight for _, weight in weighted) or 1.0)


@lru_cache(1)
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
