"""Data as users have it: images, sounds, texts, tables and objects of other libraries."""
