"""Serving: which adapters, on which base, under which names (`plan`), and one vLLM that does it (`vllm`, `launch`).

What is served and what may not be is decided before anything is started, without vLLM: it accepts in silence an
adapter of another base, one whose modules it can't find, and one that changes nothing.
"""
