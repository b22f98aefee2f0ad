"""TODO room clipdg.data."""
