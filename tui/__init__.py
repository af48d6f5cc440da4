"""The screen: a Textual application that calls the hub and computes nothing itself."""
