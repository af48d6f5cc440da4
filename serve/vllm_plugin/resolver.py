"""Adapters of the store by name, for people who run vLLM themselves.

vLLM asks, in its API server, when a request names a model it doesn't know. It keeps the answer under that name until the
server ends, and its prefix cache goes by name and path. So a name means one version for the life of the process: a name
without a digest is settled when it is first asked for, and stays, also where its tag moves on or vLLM unloads it.

What is handed out is leased until the process ends, so that no collection takes it away: an adapter's folder that
vanishes ends vLLM's engine for everybody. The lease of a process that was killed is stale by itself.
"""

from __future__ import annotations

import asyncio
import atexit
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from adapterhub.base import BaseModel
from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import AdapterHubError, NotFoundError, UsageError
from adapterhub.serve.naming import version_name
from adapterhub.serve.preflight import check
from adapterhub.serve.vllm_plugin import LOGGER
from adapterhub.store import Resolved, Store

NAME = "adapterhub store"

_DIGEST = re.compile(rf"@?(?:{DIGEST_PREFIX})?([0-9a-f]{{64}})\Z")
_log = init_logger(LOGGER)


class _UnfitError(Exception):
    """Why an adapter of the store isn't served, in words that may be told to clients: they name no path."""


class _Served(NamedTuple):
    """A version that was checked against the base, and its immutable folder. Its lease is held."""

    digest: str
    folder: Path


def offer() -> None:
    """Registers the resolver with this process's vLLM, once."""
    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        resolver = StoreResolver(Store.open())
        atexit.register(resolver.close)
        LoRAResolverRegistry.register_resolver(NAME, resolver)
        _log.info("Adapters of adapterhub's store can be asked for by name.")


class StoreResolver(LoRAResolver):  # type: ignore[misc] # vllm is untyped here
    """`support/tone`, `support/tone:v2`, `support/tone@1f2e3d4c5b6a`, `@1f2e3d4c5b6a`, or 64 hexadecimal digits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bases: dict[str, BaseModel] = {}
        self._settled: dict[str, str] = {}
        self._served: dict[tuple[str, str], _Served] = {}
        self._leases = ExitStack()
        # one at a time, and none of the threads vLLM works with: each reads an adapter whole, and takes a lease
        self._thread = ThreadPoolExecutor(1, "adapterhub-store")

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter `lora_name` means on the model at `base_model_name` (a folder or repository), or None: unknown.

        Raises:
            VLLMValidationError: the store has it and it can't be served; vLLM answers 400 with the reason. (None
                would become "does not exist".)
        """
        try:
            served = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._serve, base_model_name, lora_name
            )
        except _UnfitError as error:
            raise VLLMValidationError(str(error), parameter="model") from None
        if served is None:
            return None
        number = int(served.digest.removeprefix(DIGEST_PREFIX)[:12], 16) + 1  # vLLM gives its own
        return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(served.folder))

    def close(self) -> None:
        """Gives the leases back."""
        self._thread.shutdown(cancel_futures=True)
        self._leases.close()

    def _serve(self, base_name: str, name: str) -> _Served | None:
        """As `resolve_lora`, in the resolver's thread."""
        try:
            adapter = self._adapter(name)
            if adapter is None:
                return None
            key = (base_name, adapter.digest)
            if key not in self._served:
                self._served[key] = self._checked(base_name, adapter, name)
            self._settle(name, adapter)
        except (AdapterHubError, OSError) as error:
            _log.error("%s isn't served: %s", name, " ".join(str(error).split()))
            raise _UnfitError(f"{name} can't be served; the server's log says why.") from error
        return self._served[key]

    def _adapter(self, name: str) -> Resolved | None:
        """What `name` means: what it was settled to, else what the store says now. None for what is no name there."""
        whole = _DIGEST.match(name)
        try:
            now = self._store.resolve(f"@{whole[1]}" if whole else name)
        except (NotFoundError, UsageError) as error:
            if name not in self._settled:
                _log.info("%r is no adapter of the store: %s", name[:200], error.what[:400])
                return None
            now = None
        settled = self._settled.get(name)
        if settled is None or (now is not None and now.digest == settled):
            return now
        version = version_name(name, settled)
        _log.warning("%s has moved on in the store; this server goes on with %s.", name, version)
        return self._store.resolve(f"@{settled.removeprefix(DIGEST_PREFIX)}")

    def _settle(self, name: str, adapter: Resolved) -> None:
        """Says what a name without a digest is from now on."""
        if name not in self._settled and adapter.name is not None:
            version = version_name(name, adapter.digest)
            _log.info(
                "On this server %s is %s from now on, whatever becomes of the tag.", name, version
            )
        self._settled[name] = adapter.digest

    def _checked(self, base_name: str, adapter: Resolved, name: str) -> _Served:
        """The adapter leased, judged and laid out as a folder; the lease goes again where it isn't served.

        Raises:
            _UnfitError: it doesn't fit the base, vLLM can't honour it, or it has a NaN.
        """
        with ExitStack() as lease:
            about = f"a vLLM of your own, on {base_name}"
            lease.enter_context(self._store.leases.held("vllm", [adapter.digest], about))
            found = check(self._store, adapter, name, self._base(base_name))
            if found.problems:
                why = "; ".join(problem.text for problem in found.problems)
                ways_out = dict.fromkeys(problem.remedy for problem in found.problems)
                _log.error("%s isn't served: %s. %s", name, why, " ".join(ways_out))
                raise _UnfitError(f"{name} can't be served: {why}.")
            for remark in found.remarks:
                _log.warning("%s: %s", name, remark)
            served = _Served(adapter.digest, self._store.view(adapter.digest))
            self._leases.push(lease.pop_all())
        return served

    def _base(self, base_name: str) -> BaseModel:
        """The model vLLM serves, opened once: its fingerprint is kept with it."""
        if base_name not in self._bases:
            self._bases[base_name] = self._store.bases.open(base_name)
        return self._bases[base_name]
