"""Adapters that lie elsewhere: repositories on the Hugging Face Hub."""
