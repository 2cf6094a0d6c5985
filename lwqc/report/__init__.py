"""What a user sees: tables and JSON."""
