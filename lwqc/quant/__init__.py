"""Number formats, grids and weight methods: numpy only, no graph."""
