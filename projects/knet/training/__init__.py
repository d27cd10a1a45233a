"""Training: Detectron2's trainer with K-Net's steps, processes, checkpoints and log."""
