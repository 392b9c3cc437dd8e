"""`python -m training.bench`: the training step beside what a user would pick instead, and the machine's limits."""
