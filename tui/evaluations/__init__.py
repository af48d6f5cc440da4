"""Evaluations side by side: what is read, the screen's state, and its words."""
