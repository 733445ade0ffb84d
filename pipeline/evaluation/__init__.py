"""How good a model is: held-out text, tasks, standard errors. May import `training` and below."""
