"""Features computed for each request, from stored features and from what the caller sends.

Python mode over columns, not singleton: Feast 0.67 hands a singleton function one row's scalars
online but whole columns offline, and of several online rows it keeps only the first. Columns are
the same in both places. Feast stores the function's source text and runs it elsewhere, so it must
not use anything from this module. Its fields carry no tags of their own: Feast compares them with
untagged ones that it infers and refuses the view; the view's tags hold for all of them.
"""

from __future__ import annotations

from diabetes_views import diabetes_baseline, diabetes_serum
from feast import Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64
from sources import diabetes_request


@on_demand_feature_view(  # type: ignore[untyped-decorator]
    name="diabetes_ratios",
    sources=[diabetes_baseline, diabetes_serum, diabetes_request],
    schema=[
        Field(name="bmi_change", dtype=Float64),
        Field(name="bmi_bp_index", dtype=Float64),
        Field(name="ldl_hdl_ratio", dtype=Float64),
    ],
    mode="python",
    description="Change of body mass index since the last visit, and two products of measurements",
    tags={"data_class": "internal", "owner": "metabolics", "pii": "health"},
)
def diabetes_ratios(inputs: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """Compute the three features, row by row; a null input makes a null output."""
    nan = float("nan")

    def column(name: str) -> list[float]:
        # A null is None online and NaN offline.
        return [nan if value is None else value for value in inputs[name]]

    def nullable(values: list[float]) -> list[float | None]:
        return [value if value == value else None for value in values]  # noqa: PLR0124

    now, bmi, bp = column("bmi_now"), column("bmi"), column("bp")
    ldl, hdl = column("s2"), column("s3")
    rows = range(len(now))
    return {
        "bmi_change": nullable([now[i] - bmi[i] for i in rows]),
        "bmi_bp_index": nullable([now[i] * bp[i] / 1000.0 for i in rows]),
        "ldl_hdl_ratio": nullable([ldl[i] / (hdl[i] or nan) for i in rows]),
    }
