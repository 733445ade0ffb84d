"""The recipes: one file per verb, then the parts they share."""
