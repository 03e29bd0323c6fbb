"""Puts the commands of `multimodel` together."""

from importlib.metadata import version
from typing import Annotated

import typer

from multimodel.cli import chat, convert, keys, lifecycle, up
from multimodel.cli.options import examples

TOP_EXAMPLES = examples(
    "multimodel up examples/quickstart.yaml   [dim]# serve several models here[/dim]",
    'multimodel chat "Hello!"                 [dim]# in another terminal[/dim]',
    "multimodel status",
)

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"multimodel {version('multimodel')}")
        raise typer.Exit


@app.callback(epilog=TOP_EXAMPLES)
def multimodel(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Several language models behind one OpenAI endpoint: on this machine, or in a Kubernetes cluster."""


app.command("up", epilog=up.UP_EXAMPLES)(up.up)
app.command("serve", epilog=up.SERVE_EXAMPLES)(up.serve)
app.command("from-config", epilog=up.FROM_CONFIG_EXAMPLES)(up.from_config)
app.command("convert", epilog=convert.CONVERT_EXAMPLES)(convert.convert_file)
app.command("chat", epilog=chat.CHAT_EXAMPLES)(chat.chat)
app.command("status", epilog=lifecycle.STATUS_EXAMPLES)(lifecycle.status)
app.command("unload", epilog=lifecycle.UNLOAD_EXAMPLES)(lifecycle.unload)
app.command("reload", epilog=lifecycle.RELOAD_EXAMPLES)(lifecycle.reload)
app.add_typer(keys.app, name="keys")
