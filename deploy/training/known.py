"""The patients that `build_data` makes special, read from `known_rows.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("known_rows.json")


@dataclass(frozen=True, slots=True)
class KnownRows:
    """Ids of patients with something missing or old; every other id is fresh and complete."""

    tumour_stale: int
    tumour_null: tuple[int, str]
    diabetes_stale: int
    diabetes_stale_serum_only: int
    diabetes_no_serum: int
    diabetes_null: tuple[int, str]
    unknown: int

    @property
    def tumour_special(self) -> frozenset[int]:
        """Tumour patients that do not carry their real data row, or not freshly."""
        return frozenset({self.tumour_stale, self.tumour_null[0]})

    @property
    def diabetes_special(self) -> frozenset[int]:
        """Diabetes patients that do not carry their real data row, or not freshly."""
        return frozenset(
            {
                self.diabetes_stale,
                self.diabetes_stale_serum_only,
                self.diabetes_no_serum,
                self.diabetes_null[0],
            }
        )


def load_known_rows(path: Path = PATH) -> KnownRows:
    """Read the special ids."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    tumour, diabetes = data["tumour"], data["diabetes"]
    return KnownRows(
        tumour_stale=tumour["stale"],
        tumour_null=(tumour["null_feature"]["id"], tumour["null_feature"]["feature"]),
        diabetes_stale=diabetes["stale"],
        diabetes_stale_serum_only=diabetes["stale_serum_only"],
        diabetes_no_serum=diabetes["no_serum"],
        diabetes_null=(diabetes["null_feature"]["id"], diabetes["null_feature"]["feature"]),
        unknown=diabetes["unknown"],
    )
