"""Files in, drawings and result files out: what `knet predict` and `demo/demo.py` do."""
