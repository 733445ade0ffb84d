"""What the stages after pretraining share: which model they take, tasks, cards, GGUF, quantized kinds, adapters."""
