"""Readers of pictures and annotation files, which name every defect that they find."""
