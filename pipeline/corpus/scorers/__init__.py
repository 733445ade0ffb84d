"""Quality scorers: features, the linear model, training it, other programs' models.

May import `pipeline.corpus.synthetic` and below.
"""
