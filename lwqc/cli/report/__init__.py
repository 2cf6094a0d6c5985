"""How reports are printed."""
