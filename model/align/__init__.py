"""Words aligned to the patches of a frozen self-supervised ViT."""
