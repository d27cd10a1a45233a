"""From the last round's kernels to instances, a panoptic map and a semantic map (torch only)."""
