"""A rule as a step of datatrove's own, so that both kinds of filter stand in one pipeline. 0.7 s to import.

A module of its own: workers of `LocalPipelineExecutor` receive a pickled step, and look its class up by this name.
"""

from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from data_filters.rule import Rule


class RuleFilter(BaseFilter):
    """datatrove filter around `rule`. What it drops carries `filter_rule`, `filter_reason`, `filter_value` and
    `filter_threshold` in its metadata, and its text, into the exclusion writer."""

    def __init__(self, rule: Rule, exclusion_writer: Any = None):
        self.name = type(rule).__name__  # datatrove reads the name while it sets up
        super().__init__(exclusion_writer)
        self.rule = rule

    def filter(self, doc: Document) -> Any:
        drop = self.rule.decide(doc)
        if drop is None:
            return True
        doc.metadata["filter_rule"] = self.name
        doc.metadata["filter_value"], doc.metadata["filter_threshold"] = drop.value, drop.threshold
        return False, drop.reason
