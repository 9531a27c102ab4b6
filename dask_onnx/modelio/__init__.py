"""ONNX models in any form in, `OnnxModel` out; the one door for protobuf and external data.

Imports `core`.
"""
