"""From a job and its budgets to a plan."""
