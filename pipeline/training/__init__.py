"""Training inside a cap of GPU-hours, for pretraining and fine-tuning. Read loop.py, control.py and budget.py first.

May import model/ and, of pipeline/, config, storage, system and corpus/text. What evaluates, reports or copies a run is
handed in.
"""
