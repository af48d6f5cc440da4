"""What several folders of tests share: adapters and base models made to measure, and an independent reader of both."""
