"""The commands `audiolm models ...`: list, show, fetch and check bundles."""

from __future__ import annotations

from typing import Annotated

import typer

from audiolm_cli.command_line.arguments import Debug, Json, Offline, Quiet, configured_console
from audiolm_cli.command_line.help import EXAMPLES, complete_bundle
from audiolm_cli.errors import AudioLMError, UsageError

app = typer.Typer(help="List, show, fetch and check bundles.", no_args_is_help=False)

BundleName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Its name, a folder, or org/repo@revision of a hub.", autocompletion=complete_bundle
    ),
]


@app.command("list", epilog=EXAMPLES["models list"])
def models_list(ctx: typer.Context, json: Json = False, debug: Debug = False) -> None:
    """List the bundles that are here: embedded in the program, or fetched from a hub."""
    from audiolm_cli.bundles import catalogue

    console = configured_console(ctx)
    for record in catalogue.listed():
        size = f"{record['bytes'] / 1e6:.0f} MB"
        console.data(record, "\t".join([record["name"], record["place"], size, record["licence"], record["figures"]]))


@app.command("show", epilog=EXAMPLES["models show"])
def models_show(
    ctx: typer.Context, name: BundleName, offline: Offline = False, json: Json = False, debug: Debug = False
) -> None:
    """Show a bundle's sizes, training, model card and licence."""
    from audiolm_cli.bundles import catalogue

    console = configured_console(ctx)
    record = catalogue.shown(name, catalogue.find(name, offline, console.hearer))
    lines = [
        f"{name} ({record['place']}): {record['path']}, {record['bytes'] / 1e6:.1f} MB, licence {record['licence']}",
        *record.pop("about"),
        "",
        record["card"],
        record["licence_text"],
    ]
    console.data(record, "\n".join(lines))


@app.command("pull", epilog=EXAMPLES["models pull"])
def models_pull(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ORG/REPO[@REVISION]", help="A bundle on a hub.")],
    offline: Offline = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a bundle from a hub into the cache, or resume fetching it; check it, and print its folder."""
    from audiolm_cli.bundles import catalogue, hub

    console = configured_console(ctx)
    if not hub.is_id(name):
        raise UsageError(f"{name}: not of the form org/repo or org/repo@revision")
    folder = hub.pull(name, offline, console.hearer)
    console.data(catalogue.record(name, "cached", folder), str(folder))


@app.command("verify", epilog=EXAMPLES["models verify"])
def models_verify(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Bundles; all that are here by default.", autocompletion=complete_bundle),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every file of bundles against SHA256SUMS, and that their parts belong together."""
    from audiolm_cli import models
    from audiolm_cli.bundles import catalogue

    console = configured_console(ctx)
    failed = False
    for name in names or [record["name"] for record in catalogue.listed()]:
        try:
            folder = models.verify(name)
            console.data({"name": name, "path": str(folder), "verified": True}, f"{name}: whole")
        except AudioLMError as error:
            console.error(error)
            failed = True
    if failed:
        raise typer.Exit(1)
