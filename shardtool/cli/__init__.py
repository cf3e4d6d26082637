"""The `shardtool` command line, one module for each group of commands, here in the order of --help."""

from __future__ import annotations

from shardtool import terminal
from shardtool.cli.app import app
from shardtool.cli.inspect import info, verify
from shardtool.cli.make import specimens
from shardtool.cli.pack import pack

for command in (pack, verify, info, specimens):
    app.command()(command)


def main() -> None:
    """Entry point of the `shardtool` command."""
    terminal.run(app)
