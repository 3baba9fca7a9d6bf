"""A trace as a tree for people: who called whom, how long it took, what failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.text import Text
from rich.tree import Tree

from services.cli.tracing.spans import Span

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_cyan", "white")
# What tells calls of one name apart, shown behind the name when it is there.
_SHOWN = ("twinpath.path", "twinpath.candidate", "twinpath.attempt.kind", "twinpath.batch.size")


def services(spans: Sequence[Span]) -> list[str]:
    """Names of the services in a trace, in the order in which they were reached."""
    return list(dict.fromkeys(span.service for span in spans))


def tree(spans: Sequence[Span], title: str = "") -> Tree:
    """Draw a trace.

    A span whose parent is not there (not sent yet, or sampled out) stands at the top.

    Args:
        spans: All spans of one trace, in any order.
        title: What stands above it; empty: the trace's id.
    """
    ordered = sorted(spans, key=lambda span: (span.start_ns, span.span_id))
    colours = {
        service: _COLOURS[position % len(_COLOURS)]
        for position, service in enumerate(services(ordered))
    }
    known = {span.span_id for span in ordered}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in ordered:
        children[span.parent_id if span.parent_id in known else ""].append(span)
    root = Tree(Text(title or (f"trace {ordered[0].trace_id}" if ordered else "no spans")))
    drawn: set[str] = set()

    def draw(branch: Tree, parent_id: str) -> None:
        for span in children.get(parent_id, ()):
            if span.span_id in drawn:  # a span that is its own ancestor must not hang us
                continue
            drawn.add(span.span_id)
            draw(branch.add(_line(span, colours[span.service])), span.span_id)

    draw(root, "")
    return root


def _line(span: Span, colour: str) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(span.service.removeprefix("twinpath-"), style=colour)
    line.append(f" {_short(span.name)}", style="red" if span.error else "")
    line.append(f"  {duration(span.duration_us)}", style="bold")
    shown = [
        str(span.attributes[name]).removeprefix("ATTEMPT_KIND_").lower()
        for name in _SHOWN
        if name in span.attributes
    ]
    if shown:
        line.append(f"  {' '.join(shown)}", style="dim")
    if span.error:
        line.append("  ✗", style="bold red")
        if span.message:
            line.append(f" {span.message}", style="red")
    return line


def _short(name: str) -> str:
    """A method without its package: `Router/Infer` for `/twinpath.router.v1.Router/Infer`."""
    return name.rpartition(".")[2] if name.startswith("/") else name


def duration(microseconds: float) -> str:
    """A time for people: `830 µs`, `4.2 ms`, `1.30 s`."""
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.1f} ms"
    return f"{microseconds / 1_000_000:.2f} s"
