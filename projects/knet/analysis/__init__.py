"""How much a model computes and holds: operations, activations, parameters."""
