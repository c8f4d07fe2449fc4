"""Exports the network that a ticket executes: weights with a recipe, torch.export, ONNX; each is checked."""
