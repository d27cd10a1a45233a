"""A whole data set read once: what is in it, and what is wrong with it."""
