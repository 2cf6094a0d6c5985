"""One model at work: a plan is executed, and what came of it is measured, reported and saved."""
