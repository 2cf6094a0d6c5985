"""Models as files and in memory: loading, checking, saving, and edits of single nodes."""
