"""The `shardtool` command line, one module for each group of commands, here in the order of --help."""

from __future__ import annotations

from shardtool import terminal
from shardtool.cli.app import app
from shardtool.cli.inspect import cat, explain, info, verify
from shardtool.cli.make import export, index, specimens
from shardtool.cli.pack import pack

for command in (pack, index, verify, info, cat, explain, export, specimens):
    app.command()(command)


def main() -> None:
    """Entry point of the `shardtool` command."""
    terminal.run(app)
