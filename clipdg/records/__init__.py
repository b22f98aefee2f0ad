"""What was found: reading, writing, counting and packing records, without torch."""
