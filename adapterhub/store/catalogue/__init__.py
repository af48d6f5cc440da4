"""The catalogue: a disposable SQLite copy of what the store knows, which everything that lists and searches reads."""
