"""What a config needs and buys on a card: memory, tokens, hours, cost. May import `training` and below."""
