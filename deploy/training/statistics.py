"""Reference statistics for the catalog: `python -m deploy.training.statistics CARD...`.

A model's card keeps the statistics of each feature in its training data. This writes them to
`statistics/<task>.yaml` in the catalog, by `view__feature`: what a task's rule `impute` takes a
missing feature's value from, and what drift is measured against. Give it the card of the model that
sets the task's standard; that is one decision, made by a person, and a commit.

Exit codes: 0 written; 1 a card that can't be read, or has no statistics; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]


def catalog_statistics(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card's statistics as the catalog holds them.

    Raises:
        KeyError: the card has none, or lacks what names the features.
    """
    kept = card["reference_statistics"]
    features = {}
    for item in card["features"]:
        summary = dict(kept[item["name"]])
        quantiles = summary.get("quantiles", {})
        if "0.5" in quantiles:
            summary["median"] = quantiles["0.5"]
        features[f"{item['view']}__{item['name']}"] = summary
    return {
        "task": card["task"],
        "model": card["name"],
        "version": card["version"],
        "artifact": card["artifact"]["digest"],
        "rows": card["training"]["rows"],
        "features": features,
    }


def write_statistics(card: dict[str, Any], catalog: Path) -> Path:
    """Write a card's statistics into a catalog; return the file.

    Raises:
        KeyError: see `catalog_statistics`.
    """
    found = catalog_statistics(card)
    path = catalog / "statistics" / f"{found['task']}.yaml"
    path.parent.mkdir(exist_ok=True)
    yaml = YAML()
    yaml.indent(mapping=2)
    with path.open("w", encoding="utf-8") as out:
        out.write("# Written by `python -m deploy.training.statistics`, from the model's card.\n")
        yaml.dump(found, out)
    return path


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="statistics", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cards", type=Path, nargs="+", help="card.json of trained models")
    parser.add_argument("--catalog", type=Path, default=ROOT / "deploy" / "catalog")
    args = parser.parse_args(argv)
    for path in args.cards:
        try:
            written = write_statistics(json.loads(path.read_text("utf-8")), args.catalog)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"{path}: can't be read: {error}\n")
            return 1
        except KeyError as error:
            sys.stderr.write(f"{path}: no such entry: {error}\n")
            return 1
        sys.stdout.write(f"{written}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
