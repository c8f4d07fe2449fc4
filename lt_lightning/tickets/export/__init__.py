"""An executed ticket for use elsewhere: weights with a recipe, torch.export, ONNX; each checked."""
