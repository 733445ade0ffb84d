"""Which language a page is written in, offline: py3langid's model lies inside its wheel (a descendant of langid.py,
Lui and Baldwin, ACL 2012 system demonstrations).

In: a document. Out: `metadata["language"]` and `metadata["language_score"]` (datatrove's names) and the decision. Only
the head is read, 0.3 ms a thousand characters: of 331 packaged English pages 1,000 characters leave 18 unsure, 2,000
and 5,000 leave 4. One model per process (0.6 s, 120 MB), shared by all rules and inherited by forked workers.
"""

from collections.abc import Sequence
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


class Language(Rule):
    """Drops prose that is not in one of `languages` (ISO 639-1), or not with `min_probability`.

    The first `head_characters` decide. Writes the language found to `metadata["language"]`.
    """

    kinds, libraries = (PROSE,), ("py3langid",)

    def __init__(self, languages: Sequence[str] = ("en",), min_probability: float = 0.65, head_characters: int = 2_000):
        if isinstance(languages, str) or not languages:
            raise ValueError(f"languages is {languages!r}; expected a list of ISO 639-1 codes such as [en]")
        unknown = [code for code in languages if code not in LANGUAGES]
        if unknown:
            raise ValueError(f"languages holds {', '.join(map(repr, unknown))}; expected some of {' '.join(LANGUAGES)}")
        check_range("min_probability", min_probability, 0, 1, optional=False)
        check_range("head_characters", head_characters, 1, optional=False)
        self.languages, self.min_probability = frozenset(languages), min_probability
        self.head_characters = head_characters

    def filter(self, doc: Document) -> Decision:
        language, probability = identify(doc.text[: self.head_characters])
        doc.metadata["language"], doc.metadata["language_score"] = language, round(probability, 4)
        if language not in self.languages:
            wanted = ", ".join(sorted(self.languages))
            return False, Drop("other_language", f"{language} {probability:.2f}", wanted)
        if probability < self.min_probability:
            return False, Drop("unsure_language", round(probability, 4), self.min_probability)
        return True


def identify(text: str) -> tuple[str, float]:
    """The most probable language and its probability. Raises nothing; a text without letters is a guess near 0."""
    return _model().classify(text)


@lru_cache(1)
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
