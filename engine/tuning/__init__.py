"""Settings chosen on images whose masks are known. Refuses to know archives and runs."""
