"""From image tensor to final results in one graph, for ONNX runtimes and `torch.export`."""
