"""What runs inside vLLM, in its own processes: rows of the base kept apart from adapters, and a resolver over the store.

vLLM calls `register` through the entry-point group `vllm.general_plugins` in every process it starts: the API server,
the engine, each worker, and the one that inspects a model's class. So it is cheap, may be called again and again, and
does nothing where nothing is asked of it. Nothing heavy is imported before it is needed.

    ADAPTERHUB_VLLM_MASK       "0": leave the kernels as they are; "require": end vLLM where base rows can't be kept apart
    ADAPTERHUB_VLLM_RESOLVER   "0": offer nothing from the store
"""

from __future__ import annotations

import logging
import os

MASK = "ADAPTERHUB_VLLM_MASK"
RESOLVER = "ADAPTERHUB_VLLM_RESOLVER"
LOGGER = "vllm.plugins.adapterhub"
"""Below vLLM's own logger, the only one it gives handlers to."""


def register() -> None:
    """Installs what this process needs.

    A fault in here is logged and vLLM goes on, with one exception: where the mask was said to be required and base rows
    aren't kept apart, RuntimeError ends the process, since it would answer wrongly.
    """
    from vllm.logger import init_logger

    log = init_logger(LOGGER)
    fault = _protect(log)
    if fault:
        log.error("%s. Keep one LoRA slot more than adapters (--max-loras).", fault)
        if os.environ.get(MASK) == "require":
            raise RuntimeError(f"{MASK}=require, and {fault}.")
        return  # nothing is offered that would fill the last slot
    try:
        _offer_store()
    except Exception:
        log.exception("adapterhub's store isn't offered to this server.")


def _protect(log: logging.Logger) -> str:
    """Puts the mask in place where it is needed; returns what is wrong all the same, or nothing."""
    if os.environ.get(MASK) == "0":
        log.warning("%s=0: the LoRA kernels stay as they are.", MASK)
        return ""
    from adapterhub.serve.vllm_plugin.mask import protect

    try:
        protection = protect()
    except Exception as error:
        log.debug("The check of the LoRA kernels failed.", exc_info=True)
        return f"whether the LoRA kernels keep rows of the base apart can't be told ({error})"
    if protection.exposed:
        where = ", ".join(protection.exposed)
        return f"rows of the base are given an adapter's output in {where}"
    if protection.installed:
        log.debug("The LoRA kernels keep rows of the base apart from adapters'.")
    return ""


def _offer_store() -> None:
    """Registers the resolver, in servers that ask resolvers at all, and where there is a store."""
    import vllm.envs

    if not vllm.envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING or os.environ.get(RESOLVER) == "0":
        return
    from adapterhub.store.layout import Layout, default_home

    if not os.environ.get("ADAPTERHUB_HOME") and not Layout(default_home()).version.exists():
        return
    from adapterhub.serve.vllm_plugin.resolver import offer

    offer()
