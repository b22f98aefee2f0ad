"""From bytes to domains to batches."""
