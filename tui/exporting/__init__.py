"""What the export screen knows, asks, and says."""
