"""What `init` and `grow` share: the source of a growth and the gate that measures it."""
