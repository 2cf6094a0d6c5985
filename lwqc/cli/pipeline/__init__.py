"""`lwqc run`: builds that are described in a file."""
