"""TODO room clipdg.core."""
