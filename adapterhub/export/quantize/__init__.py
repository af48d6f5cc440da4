"""Quantised models: the arithmetic of 4 bits, checkpoints that transformers and vLLM load, and libraries that calibrate."""
