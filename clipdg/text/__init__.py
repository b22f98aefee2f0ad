"""From class names to directions: templates, prompts and their exact, fast encoding."""
