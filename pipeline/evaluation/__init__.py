"""How good a model is: held-out text, tasks, standard errors. May import `pipeline.stages`, `training` and below."""
