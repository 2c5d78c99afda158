"""A decoder as an ONNX graph in; what a Hugging Face folder has out: configuration, named tensors, tokenizer."""
