"""The training loop: batches, budget, checkpoints, validation, devices, tracking. May import `corpus`."""
