"""What a model says, in the forms that other programs read."""
