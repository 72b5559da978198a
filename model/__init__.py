"""The method in torch: frozen CLIP, trainable parts, losses, inference. No Ray, no tables."""
