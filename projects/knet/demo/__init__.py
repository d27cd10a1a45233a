"""Parts of `demo/demo.py` and of the tools that run a model on pictures."""
