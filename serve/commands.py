"""`adapterhub serve`: plan, say what was found, launch, wait."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.command import Context, command
from adapterhub.errors import MissingDependencyError, UsageError
from adapterhub.runs import Run, running
from adapterhub.serve.invocation import DTYPES, Invocation, cautions, invoke, split_extra
from adapterhub.serve.plan import COLUMNS, Plan, make_plan
from adapterhub.serve.vllm import SETTING, Engine, assumed, find

if TYPE_CHECKING:
    from adapterhub.serve.launch import Server

READY_SECONDS = 600.0


@command
def serve(
    ctx: Context,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Names or @digests of adapters."),
    ],
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
    """Serve adapters and their base through one vLLM.

    What follows -- goes to vLLM as it is:  adapterhub serve tone terms -- --seed 1
    """
    wanted, extra = split_extra(names)
    if not wanted:
        raise UsageError(
            "Name the adapters to serve.", hint="adapterhub serve NAME... [-- VLLM_ARGUMENT...]"
        )
    if dtype not in DTYPES:
        raise UsageError(
            f"'{dtype}' is no dtype to serve in.", hint=f"Choose one of {', '.join(DTYPES)}."
        )
    with ctx.out.progress("Checking adapters", total=len(wanted)) as bar:
        plan = make_plan(
            ctx.store,
            wanted,
            base=base,
            host=host,
            port=port,
            dtype=dtype,
            max_model_len=max_model_len,
            extra=extra,
            allow_mismatch=allow_mismatch,
            checked=bar.advance,
        )
    invocation = invoke(plan, _engine(ctx, vllm, dry_run))
    _warn(ctx, plan)
    if dry_run:
        _show(ctx, plan, invocation)
    else:
        _run(ctx, plan, invocation, ready_timeout)


def _engine(ctx: Context, explicit: str | None, dry_run: bool) -> Engine:
    """The vLLM to launch; to print a command, none need be there."""
    try:
        return find(explicit)
    except MissingDependencyError as error:
        if not dry_run:
            raise
        ctx.out.warn(f"{error.what} {error.why} {error.hint}")
        return assumed()


def _warn(ctx: Context, plan: Plan) -> None:
    for caution in cautions(plan):
        ctx.out.warn(caution)
    for adapter in plan.adapters:
        for remark in (*adapter.remarks, *(f"allowed: {reason}" for reason in adapter.overridden)):
            ctx.out.warn(f"{adapter.label}: {remark}")


def _show(ctx: Context, plan: Plan, invocation: Invocation) -> None:
    """The plan as a table, and the exact command."""
    if ctx.out.mode == "json":
        ctx.out.record({**plan.document(), **invocation.document()})
        return
    ctx.out.table(plan.rows(), COLUMNS)
    ctx.out.text("")
    ctx.out.text(invocation.shell)


def _run(ctx: Context, plan: Plan, invocation: Invocation, ready_timeout: float) -> None:
    """Launches, says where it listens, and stays until Ctrl-C or until the server ends."""
    from adapterhub.serve.launch import require_free

    require_free(plan.host, plan.port)
    for adapter in plan.adapters:
        if adapter.overridden:
            body = {
                "event": "served",
                "base": plan.base.fingerprint,
                "allowed_mismatch": list(adapter.overridden),
            }
            ctx.store.attest(adapter.digest, "note", body)
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

    shown = 0
    try:
        with ctx.out.progress(f"Starting vLLM {engine.version or ''} (seconds)") as bar:

            def tell(elapsed: float, said: str) -> None:
                nonlocal shown
                bar.advance(int(elapsed) - shown, **({"log": said[:100]} if said else {}))
                shown = int(elapsed)

            seconds = wait_until_ready(
                server, plan.url, plan.names, seconds=ready_timeout, tell=tell
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
    """Where it listens and how to ask; the line below can be typed as it stands."""
    question = json.dumps(
        {"model": plan.adapters[0].label, "prompt": "Once upon a time", "max_tokens": 32}
    )
    return {
        "url": plan.url,
        "base": plan.base_name,
        "names": list(plan.names),
        "pid": server.pid,
        "run": run,
        "log": str(server.log),
        "try": f"curl {plan.url}/v1/completions -H 'Content-Type: application/json' -d '{question}'",
    }
