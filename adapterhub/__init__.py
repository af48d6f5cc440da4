"""adapterhub: Git plus Ollama for LoRA adapters, with an exact algebra."""
