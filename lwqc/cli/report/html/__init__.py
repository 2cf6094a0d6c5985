"""Results as one page for a browser, which needs nothing else: no network, no other file."""
