"""Training: the data that is made for it, splits and recipes."""
