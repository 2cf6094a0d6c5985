"""Side-by-side measurements against peers; each file is one command."""
