"""What the chat playground knows, and who answers in it."""
