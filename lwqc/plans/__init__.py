"""What is to be done to a model, as data: plans, recipes and budgets."""
