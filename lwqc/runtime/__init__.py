"""Running models: sessions, data, times, memory, and statistics of what flows through them."""
