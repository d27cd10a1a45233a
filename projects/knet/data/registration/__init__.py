"""Data sets by name: files to Detectron2's catalogs, with metadata from the annotations."""
