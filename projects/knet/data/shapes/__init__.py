"""The toy data set *shapes*: drawn scenes with exact labels."""
