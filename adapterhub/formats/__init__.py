"""How adapters come in: file formats and config dialects, read without torch and without trusting them."""
