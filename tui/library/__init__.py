"""What the library screen knows and says: its state, the filter, what is read from the hub, and the words for it."""
