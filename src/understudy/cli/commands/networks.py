"""`understudy networks`."""

from typing import Any

from rich.console import Group
from rich.table import Table

from understudy.core.records.progress import Progress
from understudy.workflows.networks import NetworksConfig as Config
from understudy.workflows.networks import list_networks


def run(config: Config, progress: Progress) -> tuple[Any, Any]:
    rows = list_networks(config)
    table = Table("name", "family", "parameters", "what it is", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(row["name"], row["family"], f"{row['parameters']:,}", row["description"])
    others = (
        "\nany other: hf:ORG/NAME or hf:PATH (causal language models, image classifiers), "
        "sb3:FILE.zip@ENVIRONMENT (policies), py:package.module:function (your own);\n"
        "organism:NAME or organism:NAME@SEED (networks whose mechanism is known: understudy organisms)"
    )
    return {"networks": rows}, Group(table, others)
