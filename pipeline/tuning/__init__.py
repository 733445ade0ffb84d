"""Fine-tuning: examples, chat forms, adapters, the run. May import `release` and below."""
