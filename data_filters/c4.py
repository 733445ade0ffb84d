"""C4's heuristics for prose (arXiv 1910.10683, section 2.2): lines that are no sentences, pages that are no text.

In: a document. Out: the decision and reason of datatrove's `C4QualityFilter` with the sentences of
`words.sentence_spans`, and with `remove_lines` its text too: C4 removes single lines and citations from what it keeps.
Off by default: hornbook's stage writes texts before its rules, so there a rule may only decide.
"""

import re
from dataclasses import dataclass

from datatrove.data import Document

from data_filters.rule import PROSE, Decision, Drop, Rule, check_range
from data_filters.words import count_sentences, sentence_spans, words_of

_ENDS, _ELLIPSIS = (".", "?", "!", '"', "'"), "..."
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


@dataclass(eq=False)
class C4Quality(Rule):
    """C4's rules on prose: curly brackets, lorem ipsum, and too few sentences in lines that end like sentences.

    `remove_lines`: also replace the document's text by the lines that C4 keeps, as C4 did.
    """

    kinds, of_sentences = (PROSE,), True

    split_paragraph: bool = True
    remove_citations: bool = True
    filter_no_terminal_punct: bool = True
    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1_000
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True
    remove_lines: bool = False

    def __post_init__(self) -> None:
        for name in ("min_num_sentences", "min_words_per_line", "max_word_length"):
            check_range(name, getattr(self, name), -1, optional=False)

    def filter(self, doc: Document) -> Decision:
        text = doc.text
        if self.split_paragraph:
            lines = words_of(text).stripped_split_lines()
        else:
            lines = [text[start:end].strip() for start, end in sentence_spans(text)]
        citations = self.remove_citations and _CITATION.search(text) is not None
        punctuated, min_words, max_word = self.filter_no_terminal_punct, self.min_words_per_line, self.max_word_length
        if punctuated:  # most lines fall here; a citation may hide the end of a sentence
            ends = frozenset((*_ENDS, "]") if citations else _ENDS)
            lines = [line for line in lines if line and line[-1] in ends]
        before = lines
        if citations:
            lines = [_CITATION.sub("", line) if "[" in line else line for line in lines]
        whole = "\n".join(lines).lower()  # what all lines together do not hold no line holds
        lorem = self.filter_lorem_ipsum and "lorem ipsum" in whole
        javascript = self.filter_javascript and "javascript" in whole
        policies = [p for p in _POLICIES if p in whole] if self.filter_policy else []
        lowered = bool(lorem or javascript or policies)
        curly = self.filter_curly_bracket and "{" in whole

        kept, n_sentences = [], 0
        for full, line in zip(before, lines, strict=True):
            if punctuated and (not line.endswith(_ENDS) or line.endswith(_ELLIPSIS)):
                continue
            if min_words > 0 and len(full.split(None, min_words - 1)) < min_words:
                continue
            if len(full) > max_word != -1 and any(len(word) > max_word for word in full.split()):
                continue
            low = line.lower() if lowered else ""
            if lorem and "lorem ipsum" in low:
                return False, Drop("lorem_ipsum", line[:120], "none")
            if javascript and "javascript" in low:
                continue
            if curly and "{" in line:
                return False, Drop("curly_bracket", line[:120], "none")
            if policies and any(p in low for p in policies):
                continue
            if n_sentences < self.min_num_sentences:  # counted until there are enough
                n_sentences += count_sentences(line) if self.split_paragraph else 1
            kept.append(line)
        if self.min_num_sentences > n_sentences and self.min_num_sentences != -1:
            return False, Drop("too_few_sentences", n_sentences, self.min_num_sentences)
        if self.remove_lines:
            doc.text = ("\n" if self.split_paragraph else " ").join(kept).strip()
        return True
