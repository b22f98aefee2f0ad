"""Tables, figures and the page made from records; nothing here imports torch."""
