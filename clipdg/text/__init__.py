"""TODO room clipdg.text."""
