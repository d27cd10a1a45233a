"""Pictures of any size, tile by tile: NumPy, Pillow and rasterio; no PyTorch, no Detectron2."""
