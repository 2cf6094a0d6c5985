"""Rewrites; each executes one part of a plan and refuses, with a reason, what it cannot do."""
