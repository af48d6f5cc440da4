"""`adapterhub serve`: plan, say what was found, launch, wait."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.cli.command import Context, command
from adapterhub.runs import Run, running
from adapterhub.serve.invocation import DTYPES, ENGINE_SOCKET, Invocation, invoke, split_extra
from adapterhub.serve.plan import COLUMNS, Plan
from adapterhub.serve.preflight import attest_overridden
from adapterhub.serve.prospect import Prospect, prospect, require_door
from adapterhub.serve.vllm import SETTING, Engine
from adapterhub.serve.wish import READY_SECONDS, Wish, require_known
from adapterhub.words import counted

if TYPE_CHECKING:
    from adapterhub.cli.output import Progress
    from adapterhub.serve.capacity import Capacity
    from adapterhub.serve.launch import Server

ROOM_COLUMNS = ("what", "bytes", "where", "how")
ENGINES = ("vllm", "sglang")


@command
def serve(
    ctx: Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="Names or @digests of adapters; 'support/*' means all that match."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every adapter of the store that fits the base.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Folder or repository; by default the adapters' own.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is for this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    dtype: Annotated[
        str, typer.Option(help=f"Of base and adapters: {', '.join(DTYPES)}.")
    ] = "auto",
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help="Longest prompt and answer together, in tokens; by default the base's own.", min=1
        ),
    ] = None,
    loaded: Annotated[
        int | None,
        typer.Option(
            help="Adapters held in memory; others are loaded when asked for.  [default: all and one, at most 16]",
            min=1,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Different adapters in one batch; each is a slot on the accelerator.  [default: 8 at most]",
            min=1,
        ),
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option(
            help="Largest rank to be ready for, with `server add` in mind.", min=1, max=512
        ),
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="Never put this adapter out for another.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="File of tenants, their keys' hashes, adapters and limits."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Before the door opens: show that each adapter answers as trained, and that none is mixed with another.",
        ),
    ] = True,
    prod: Annotated[
        bool,
        typer.Option(
            "--prod",
            help="Serve only what the tag prod means, or could mean by the gates in config.toml.",
        ),
    ] = False,
    direct: Annotated[
        bool,
        typer.Option("--direct", help="No front door: vLLM listens itself, with fixed names."),
    ] = False,
    engine: Annotated[
        str, typer.Option(help="vllm; or sglang, whose command is only printed.")
    ] = ENGINES[0],
    ready_timeout: Annotated[
        float, typer.Option(help="Seconds to wait until it is ready.", min=1)
    ] = READY_SECONDS,
    vllm: Annotated[
        str | None,
        typer.Option(
            "--vllm", envvar=SETTING, help="The `vllm` command to use; else one is looked for."
        ),
    ] = None,
    allow_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-mismatch", help="Serve adapters that don't fit the base; this is recorded."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the exact command; start nothing.")
    ] = False,
) -> None:
    """Serve adapters and their base through one vLLM, behind a door that knows their versions.

    What follows -- goes to vLLM as it is:  adapterhub serve tone terms -- --seed 1
    """
    wanted, extra = split_extra(names or [])
    require_known("engine", engine, ENGINES)
    wish = Wish(
        tuple(wanted), everything, base, host, port, dtype, max_model_len, loaded, batch, max_rank,
        tuple(pin or ()), keys, verify, direct, ready_timeout, vllm, allow_mismatch, prod, tuple(extra),
    )  # fmt: skip
    with ctx.out.progress("Checking adapters", total=len(wanted) or None) as bar:
        found = prospect(ctx.store, wish, checked=bar.advance)
    if engine == "sglang" and found.plan is not None:
        _show_sglang(ctx, found.plan)
        return
    _require_sound(ctx, found, dry_run=dry_run)
    assert found.plan is not None
    assert found.invocation is not None
    assert found.room is not None
    for left_out in found.plan.skipped:
        ctx.out.note(f"left out: {left_out}")
    for remark in found.remarks:
        ctx.out.warn(remark)
    if dry_run:
        _show(ctx, found.plan, found.invocation, found.room)
    for problem in (*found.room.problems, *found.room.advice):
        ctx.out.warn(problem)
    if dry_run:
        return
    if direct:
        _serve_directly(ctx, found.plan, found.invocation, ready_timeout)
    else:
        _serve_behind_door(ctx, found.plan, found.invocation.engine, wish)


def _require_sound(ctx: Context, found: Prospect, *, dry_run: bool) -> None:
    """Raises what speaks against it. To print a command, no vLLM need be there."""
    if found.problem is not None:
        raise found.problem
    missing = found.no_engine
    if missing is not None and not dry_run:
        raise missing
    if missing is not None:
        ctx.out.warn(f"{missing.what} {missing.why} {missing.hint}")


def _show(ctx: Context, plan: Plan, invocation: Invocation, room: Capacity) -> None:
    """The plan and the memory it takes as tables, and the exact command."""
    if ctx.out.mode == "json":
        ctx.out.record({**plan.document(), **invocation.document(), "memory": room.document()})
        return
    ctx.out.table(plan.rows(), COLUMNS)
    if ctx.out.mode == "human":
        ctx.out.text("")
        ctx.out.table(room.rows(), ROOM_COLUMNS)
    ctx.out.text("")
    ctx.out.text(invocation.shell)


def _show_sglang(ctx: Context, plan: Plan) -> None:
    """The command that would do the same with SGLang; nothing is launched."""
    from adapterhub.serve.sglang import command as sglang_command

    shown = sglang_command(plan)
    for remark in shown.remarks:
        ctx.out.warn(remark)
    if ctx.out.mode != "json":
        ctx.out.piece(f"{shown.shell}\n")
    else:
        ctx.out.record({**plan.document(), **shown.document()})


def _attest_overridden(ctx: Context, plan: Plan) -> None:
    for adapter in plan.adapters:
        attest_overridden(ctx.store, adapter.digest, plan.base, adapter.overridden)


def _serve_behind_door(ctx: Context, plan: Plan, engine: Engine, wish: Wish) -> None:
    """Returns never: an interrupt or the engine's end leaves it as an exception."""
    require_door()
    import asyncio

    from adapterhub.serve.door.app import DoorSettings
    from adapterhub.serve.launch import listener, private_folder
    from adapterhub.serve.proof import prove
    from adapterhub.serve.session import Said, Session, Setup

    listening = listener(plan.host, plan.port)
    _attest_overridden(ctx, plan)
    folder = private_folder()
    digests = [adapter.digest for adapter in plan.adapters]
    try:
        with (
            listening,
            ctx.store.leases.held("serve", digests, f"at {plan.url}"),
            ctx.out.progress(f"Starting vLLM {engine.version or ''} (seconds)") as bar,
        ):
            for digest in digests:
                ctx.store.view(digest)  # a collection may have come between the plan and the lease
            invocation = invoke(plan, engine, socket=folder / ENGINE_SOCKET)
            recipe = {**plan.document(), **invocation.document()}
            with running(ctx.store.runs_dir, "serve", recipe) as run:
                setup = Setup(
                    ctx.store, plan, invocation, run, folder, listening, engine.protection,
                    keys=wish.keys or _key_of_environment(folder), pinned=wish.pin,
                    ready_timeout=wish.ready_timeout,
                    settings=DoorSettings(
                        max_model_len=plan.max_model_len, prompt_scores=engine.protection == "none needed",
                        about=_about(plan, engine),
                    ),
                )  # fmt: skip

                async def checked(client: Any) -> None:
                    if wish.verify:
                        bar.update("Asking each adapter, and all at once")
                        report = await prove(ctx.store, client, bar.update)
                        run.event("verified", report=report.document())
                        for remark in report.remarks:
                            ctx.out.note(remark)
                        ctx.out.note(
                            f"{counted(len(report.names), 'name')} answered as trained, alone and mixed"
                            f" ({report.requests} requests, {report.seconds:.0f} s)."
                        )

                def ready(seconds: float) -> None:
                    bar.update("Serving")
                    ctx.out.record(
                        _behind_door(plan, run, keyed=setup.keys is not None), ids=("url",)
                    )
                    sys.stdout.flush()  # into a pipe it would else arrive when all is over
                    ctx.out.note(f"Ready after {seconds:.0f} s. Ctrl-C stops it.")

                said = Said(
                    starting=_starting(bar),
                    loading=lambda name: bar.update(f"Loading {name}"),
                    checked=checked,
                    ready=ready,
                    note=ctx.out.note,
                )
                ctx.out.note(f"vLLM writes to {run.path / 'vllm.log'}")
                asyncio.run(Session(setup, said).serve())
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise KeyboardInterrupt("vLLM was stopped, and with it all that it had started.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _starting(bar: Progress) -> Callable[[float, str], None]:
    """Tells `bar` how many seconds have gone by, and the log's last line."""
    shown = 0

    def tell(elapsed: float, said: str) -> None:
        nonlocal shown
        bar.advance(int(elapsed) - shown, **({"log": said[:100]} if said else {}))
        shown = int(elapsed)

    return tell


def _key_of_environment(folder: Path) -> Path | None:
    """A key file for VLLM_API_KEY, where that is set: whoever protects a vLLM so means the door, too."""
    from adapterhub.serve.door.keys import line_of

    key = os.environ.get("VLLM_API_KEY")
    if not key:
        return None
    file = folder / "keys.yaml"
    file.touch(mode=0o600)
    file.write_text(line_of("owner", key, metrics=True) + "\n")
    return file


def _about(plan: Plan, engine: Engine) -> dict[str, str]:
    """What the door says of its base, so that whoever evaluates through it knows whose numbers they are."""
    from adapterhub.serve.verify.probes import served_dtype

    return {
        "fingerprint": plan.base.fingerprint,
        "dtype": served_dtype(plan.dtype, plan.base.path),
        "engine": f"vllm {engine.version or 'unknown'}",
        # what is handed on to vLLM may quantise, and is nobody else's business
        "options": digest_of(canonical_bytes({"extra": list(plan.extra)})),
    }


def _behind_door(plan: Plan, run: Run, *, keyed: bool) -> dict[str, Any]:
    return {
        "url": plan.url,
        "base": plan.base_name,
        "names": list(plan.names),
        "run": run.id,
        "log": str(run.path / "vllm.log"),
        "try": _try(plan, '"Authorization: Bearer $KEY"' if keyed else ""),
    }


def _try(plan: Plan, header: str = "") -> str:
    """A line that can be typed as it stands; with the key in a variable where the door asks for one."""
    question = json.dumps(
        {"model": plan.adapters[0].label, "prompt": "Once upon a time", "max_tokens": 32}
    )
    return f"curl {plan.url}/v1/completions {f'-H {header} ' if header else ''}-H 'Content-Type: application/json' -d '{question}'"


def _serve_directly(ctx: Context, plan: Plan, invocation: Invocation, ready_timeout: float) -> None:
    """Launches vLLM on the port itself, and stays until Ctrl-C or until it ends."""
    from adapterhub.serve.launch import require_free

    require_free(plan.host, plan.port)
    _attest_overridden(ctx, plan)
    recipe = {**plan.document(), **invocation.document()}
    digests = [adapter.digest for adapter in plan.adapters]
    try:
        with ctx.store.leases.held("serve", digests, f"at {plan.url}"):
            _launch(ctx, plan, invocation, recipe, ready_timeout)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("vLLM was stopped, and with it all that it had started.") from None


def _launch(
    ctx: Context,
    plan: Plan,
    invocation: Invocation,
    recipe: dict[str, Any],
    ready_timeout: float,
) -> None:
    """Returns never, as `_serve`. The caller holds the lease of what is served."""
    from adapterhub.serve.launch import launched

    for adapter in plan.adapters:
        ctx.store.view(adapter.digest)  # a collection may have come between the plan and the lease
    with running(ctx.store.runs_dir, "serve", recipe) as run:
        log = run.path / "vllm.log"
        ctx.out.note(f"vLLM writes to {log}")
        with launched(invocation, log) as server:
            run.event("launched", pid=server.pid)
            _serve(ctx, plan, invocation.engine, server, run, ready_timeout)


def _serve(
    ctx: Context, plan: Plan, engine: Engine, server: Server, run: Run, ready_timeout: float
) -> None:
    """Returns never: an interrupt or the server's end leaves it as an exception."""
    from adapterhub.serve.launch import wait_until_ready
    from adapterhub.serve.place import Place

    try:
        with ctx.out.progress(f"Starting vLLM {engine.version or ''} (seconds)") as bar:
            seconds = wait_until_ready(
                server, Place(plan.url), plan.names, seconds=ready_timeout, tell=_starting(bar)
            )
        run.event("ready", seconds=seconds, url=plan.url, names=list(plan.names))
        ctx.out.record(_listening(plan, server, run.id), ids=("url",))
        sys.stdout.flush()  # into a pipe it would else arrive when all is over
        ctx.out.note(f"Ready after {seconds:.0f} s. Ctrl-C stops it.")
        server.wait()
    except KeyboardInterrupt:
        ctx.out.note("Stopping vLLM. Ctrl-C again ends it at once.")
        raise


def _listening(plan: Plan, server: Server, run: str) -> dict[str, Any]:
    """Where it listens and how to ask."""
    return {
        "url": plan.url,
        "base": plan.base_name,
        "names": list(plan.names),
        "pid": server.pid,
        "run": run,
        "log": str(server.log),
        "try": _try(plan),
    }
