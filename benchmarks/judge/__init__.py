"""Win-rates by a language model behind an endpoint, which says which of two answers is the better one."""
