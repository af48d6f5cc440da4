"""The screens: each owns its state, asks the hub in a thread and hands values to its widgets."""
