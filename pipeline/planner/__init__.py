"""What a config needs and buys on a card: memory, tokens, hours, cost. May import `stages`, `training` and below."""
