"""Templates of exercises: each draws parameters for a difficulty and gives a task, a solution and assertions.

The expected values in the assertions come from a second, independent way of computing them, written beside the
solution as a lambda: so a mistake in a solution's text is found when the exercise is run. `variant` names the idea
without its numbers; ideas, not items, are held out together.
"""

from collections.abc import Callable
from random import Random

from pipeline.corpus.exercises.exercise import Exercise
from pipeline.corpus.exercises.templates import algorithms, arithmetic, language, lists, structures, text

Template = Callable[[Random, str], Exercise]

THEMES: dict[str, tuple[Template, ...]] = {
    "lists": (lists.filter_and_fold, lists.rearrange, lists.grid, lists.intervals, lists.two_pointers),
    "text": (
        text.text_steps,
        text.count_words,
        text.cipher,
        text.run_lengths,
        text.records,
        text.layout,
        text.brackets,
    ),
    "arithmetic": (
        arithmetic.story,
        arithmetic.recurrence,
        arithmetic.digits,
        arithmetic.number_theory,
        arithmetic.equations,
        arithmetic.clock,
    ),
    "algorithms": (
        algorithms.search,
        algorithms.ordering,
        algorithms.dynamic,
        algorithms.graphs,
        algorithms.recursion,
    ),
    "data structures": (
        structures.machine,
        structures.stack_programs,
        structures.containers,
        structures.trees,
        structures.heaps_and_sets,
    ),
    "python": (
        language.comprehensions,
        language.generators,
        language.functions,
        language.errors,
        language.small_classes,
    ),
}
TEMPLATES: dict[str, Template] = {function.__name__: function for theme in THEMES.values() for function in theme}
