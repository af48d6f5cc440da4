"""The store's history as the screen sees it: what was done, and how it is said."""
