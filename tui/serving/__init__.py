"""What the Serve place says of plans and running servers."""
