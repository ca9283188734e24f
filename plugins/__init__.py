"""The built-in parts. They enter through the same hooks as a stranger's."""
