"""`adapterhub server`: what runs, and changing it while it answers."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli.command import Context, command, require_extra
from adapterhub.errors import ExitCode, ExternalToolError, UsageError

if TYPE_CHECKING:
    from adapterhub.serve.verify import Report

app = typer.Typer(
    help="Look into running servers and change what they serve.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

COLUMNS = ("name", "version", "share", "loaded", "requests", "pinned")

_LOOK_SECONDS = 0.2
_MOST_LINES = 10_000  # that a log grows by between two looks

Which = Annotated[
    str | None,
    typer.Option(
        "--server", help="Its port, URL or run, where several run.", metavar="PORT|URL|RUN"
    ),
]
Allowed = Annotated[
    bool,
    typer.Option(
        "--allow-mismatch", help="Serve adapters that don't fit the base; this is recorded."
    ),
]
Alias = Annotated[str, typer.Argument(metavar="NAME", help="A name the server answers to.")]


@command
def server_ls(ctx: Context, which: Which = None) -> ExitCode:
    """List the running servers, and what each serves."""
    from adapterhub.serve.client import servers, the_server
    from adapterhub.serve.status import rows

    running = [the_server(ctx.store, which)] if which else servers(ctx.store)
    if not running:
        ctx.out.note("No server is running. Start one: adapterhub serve NAME...")
    documents = []
    code = ExitCode.OK
    for one in running:
        try:
            documents.append(one.status())
        except ExternalToolError as error:
            ctx.out.warn(f"{error.what} {error.hint}")
            code = ExitCode.PARTLY
    if ctx.out.mode == "json":
        ctx.out.table(documents, ("run", "url"))
        return code
    for document in documents:
        ctx.out.note(
            f"{document['url']}  {document['state']}: {document['base']['name']}, {document['loaded']} of at most"
            f" {document['capacity']} adapters loaded  ({document['run']})"
        )
        ctx.out.table(rows(document), COLUMNS, ids="name")
    return code


@command
def server_add(
    ctx: Context,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Names or @digests of adapters.")
    ],
    which: Which = None,
    allow_mismatch: Allowed = False,
) -> None:
    """Serve more adapters, without a pause for the others."""
    from adapterhub.serve import changes
    from adapterhub.serve.client import the_server

    server = the_server(ctx.store, which)
    rows = changes.add(ctx.store, server, names, allow_mismatch=allow_mismatch, remark=ctx.out.warn)
    ctx.out.table(rows, ("name", "versions"), ids="name")


@command
def server_update(
    ctx: Context,
    name: Alias,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="ADAPTER[=SHARE]",
            help="What it means from now on; several with shares split the requests. Default: what the store means by NAME.",
        ),
    ] = None,
    which: Which = None,
    allow_mismatch: Allowed = False,
) -> None:
    """Let a served name mean another version from the next request on.

    The new version is loaded first; requests under way keep the one they began with.
    """
    from adapterhub.serve import changes
    from adapterhub.serve.client import the_server

    server = the_server(ctx.store, which)
    done = changes.update(
        ctx.store, server, name, to or [], allow_mismatch=allow_mismatch, remark=ctx.out.warn
    )
    ctx.out.record(done, ids=("name",))


@command
def server_rollback(ctx: Context, name: Alias, which: Which = None) -> None:
    """Let a served name mean what it meant before. Again: what it meant before that."""
    from adapterhub.serve import changes
    from adapterhub.serve.client import the_server

    ctx.out.record(changes.rollback(the_server(ctx.store, which), name), ids=("name",))


@command
def server_rm(
    ctx: Context,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Names the server answers to.")
    ],
    which: Which = None,
) -> None:
    """Stop serving names. Requests under way are answered to their end."""
    from adapterhub.serve import changes
    from adapterhub.serve.client import the_server

    server = the_server(ctx.store, which)
    rows = [changes.remove(server, name) for name in names]
    ctx.out.table(rows, ("name", "versions"), ids="name")


@command
def server_verify(
    ctx: Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all that are served.")
    ] = None,
    which: Which = None,
) -> ExitCode:
    """Show that a running server answers as its adapters were trained, and mixes none with another."""
    import asyncio

    require_extra("httpx", "door")
    from adapterhub.serve.client import the_server
    from adapterhub.serve.proof import prove_running

    server = the_server(ctx.store, which)
    with ctx.out.progress("Asking") as bar:
        report = asyncio.run(prove_running(ctx.store, server, names or [], bar.update))
    return _told(ctx, report)


@command
def server_chat(
    ctx: Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name the server answers to; its base, too.")
    ],
    prompt: Annotated[
        str | None, typer.Option(help="One question; left out, it is read from stdin.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 256,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest token.", min=0.0)
    ] = 0.0,
    which: Which = None,
) -> None:
    """Ask a running server, through the door and with its own template."""
    from adapterhub.serve.client import the_server
    from adapterhub.serve.naming import BASE
    from adapterhub.serve.questions import ask

    server = the_server(ctx.store, which)
    if name == BASE:
        name = server.status()["base"]["name"]
    question = sys.stdin.read() if prompt is None else prompt
    if not question.strip():
        raise UsageError("There is no question.", hint="--prompt TEXT, or text on stdin.")
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": question})
    if not server.has_template():
        ctx.out.note("The base has no chat template: the text is continued.")
        turns = []
    pieces = ask(server, name, question, turns, max_tokens=max_tokens, temperature=temperature)
    ctx.out.stream(pieces, about={"model": name})


@command
def server_logs(
    ctx: Context,
    lines: Annotated[int, typer.Option("-n", "--lines", help="How many, from the end.")] = 40,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
    which: Which = None,
) -> None:
    """Print the engine's log."""
    from adapterhub.serve.client import SERVER_FILE, the_server
    from adapterhub.tail import Tail

    server = the_server(ctx.store, which)
    tail = Tail(server.folder / "vllm.log")
    found = tail.new(lines)
    if ctx.out.mode == "json":
        ctx.out.record({"log": str(tail.log), "lines": found})
        return
    while True:
        for line in found:
            ctx.out.piece(f"{line}\n")
        ended = not (server.folder / SERVER_FILE).exists()
        if not follow or (ended and not found):
            return
        time.sleep(_LOOK_SECONDS)
        found = tail.new(_MOST_LINES)


@command
def server_stop(ctx: Context, which: Which = None) -> None:
    """Stop a server: running answers finish, then it ends."""
    from adapterhub.serve.client import the_server

    server = the_server(ctx.store, which)
    server.stop()
    with ctx.out.progress(f"Stopping {server.url} (seconds)") as bar:
        while any(lease.pid == server.pid for lease in ctx.store.leases.live()):
            time.sleep(0.2)
            bar.advance(0.2)
    ctx.out.record({"stopped": server.url, "run": server.run}, ids=("run",))


@command
def server_key(
    ctx: Context,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Who will use it.")],
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapters", help="What it may ask for: 'support/*', a name, base."),
    ] = None,
) -> None:
    """Make a key for a tenant, and the lines for the file given to `serve --keys`.

    The key is shown once: the file has only its hash.
    """
    from adapterhub.serve.door.keys import new_key

    key, entry = new_key(tenant, adapters or ["*"])
    ctx.out.record({"key": key, "entry": entry}, ids=("key",))


def _told(ctx: Context, report: Report) -> ExitCode:
    """A report as a table or as data; FAILED where something is wrong."""
    from adapterhub.serve.verify import COLUMNS as REPORT

    if ctx.out.mode == "json":
        ctx.out.record(report.document())
    else:
        ctx.out.table(report.rows(), REPORT)
        for remark in report.remarks:
            ctx.out.note(remark)
        for fault in report.faults:
            ctx.out.warn(str(fault))
    return ExitCode.OK if report.ok else ExitCode.FAILED


app.command("ls")(server_ls)
app.command("add")(server_add)
app.command("update")(server_update)
app.command("rollback")(server_rollback)
app.command("rm")(server_rm)
app.command("verify")(server_verify)
app.command("chat")(server_chat)
app.command("logs")(server_logs)
app.command("stop")(server_stop)
app.command("key")(server_key)
