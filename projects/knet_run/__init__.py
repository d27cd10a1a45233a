"""Runs exported models without PyTorch, Detectron2 and `knet`: this folder stands by itself.

It needs numpy and Pillow, and onnxruntime for ONNX files or openvino for OpenVINO's. Copy it to
where it is needed: `python -m knet_run model.onnx --input photo.jpg --output results` runs there.
"""
