"""Allocators: scores and a budget become choices."""
