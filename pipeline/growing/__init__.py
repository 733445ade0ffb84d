"""What `init` and `grow` share: the growth itself and the gate that measures it. May import `training` and below."""
