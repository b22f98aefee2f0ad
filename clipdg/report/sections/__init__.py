"""TODO room clipdg.report.sections."""
