"""What a job within a bound on memory will take, before it begins."""
