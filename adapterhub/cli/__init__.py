"""The command line: one file a command group; `output.py` is the only place that prints."""
