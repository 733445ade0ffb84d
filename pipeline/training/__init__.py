"""The parts of pretraining: batches, budget, module, callbacks, checkpoints, tracking."""
