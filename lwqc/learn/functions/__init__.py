"""The torch functions of operators, one file for a family, each with its table."""
