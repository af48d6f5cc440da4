"""What the merge screen knows: the merge that is planned, what the hub says of it, and both in words."""
