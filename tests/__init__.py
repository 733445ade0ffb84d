"""A package, so that no installed one called `tests` can take its place."""
