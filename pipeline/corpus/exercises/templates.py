"""Templates of exercises: a template is a function that draws values for a difficulty and makes an exercise of one of
its ideas. Ideas, not items, are held out together.
"""

from collections.abc import Callable
from random import Random

from pipeline.corpus.exercises import program_templates as programs
from pipeline.corpus.exercises import value_templates as values
from pipeline.corpus.exercises.exercise import Exercise

Template = Callable[[Random, str], Exercise]

_ALL: tuple[Template, ...] = (
    values.filter_and_fold, values.rearrange, values.grid, values.intervals, values.two_pointers,
    values.text_steps, values.count_words, values.cipher, values.run_lengths, values.records, values.layout,
    values.brackets, values.story, values.recurrence, values.digits, values.number_theory, values.equations,
    values.clock, programs.search, programs.ordering, programs.dynamic, programs.graphs, programs.recursion,
    programs.machine, programs.stack_programs, programs.containers, programs.trees, programs.heaps_and_sets,
    programs.comprehensions, programs.generators, programs.functions, programs.errors, programs.small_classes,
)  # fmt: skip
TEMPLATES: dict[str, Template] = {function.__name__: function for function in _ALL}
