"""Behind the train screen: what it knows, what it asks of the trainer, and what it says."""
