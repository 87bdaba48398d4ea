"""What the rest stands on; it knows nothing of memories."""
