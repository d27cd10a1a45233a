"""Training: targets, matching and losses (torch only), then the Detectron2 trainer around them."""
