"""TODO room clipdg.records."""
