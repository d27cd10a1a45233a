"""The K-Net model. Everything but `meta_arch` and the backbones imports torch only."""
