"""What budgets bound: one file each, called like its option in `lwqc.plans.options.Budgets`."""
