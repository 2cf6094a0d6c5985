"""Allocators of number formats to sites: one file each, called like the allocator."""
