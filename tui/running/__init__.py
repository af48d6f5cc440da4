"""Runs as the screen sees them: what is known, and how it is said."""
