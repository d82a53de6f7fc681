"""From bytes to displayed pixels, one module a kind. Refuses to know where bytes come from."""
