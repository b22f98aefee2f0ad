"""The light nouns that every room may import, without torch."""
