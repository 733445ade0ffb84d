"""Studies: the members of one study under equal budgets, running them, and what they show.

`file` reads a study, `design` says what it compares, `members` makes its experiments, `run` runs them, `analysis` works
out the results, `pages` writes them. The layer above the verbs: it may import all of them, and only `study` imports it.
"""
