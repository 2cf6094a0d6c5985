"""The version of lwqc."""

VERSION = "0.1.0"
