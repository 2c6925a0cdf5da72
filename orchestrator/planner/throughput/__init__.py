"""How fast a model serves or trains on given accelerators: a roofline with stated factors."""
