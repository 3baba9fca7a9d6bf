"""Scaffolds a feature view: its definition, its rules, its test, and its place in a service."""

from __future__ import annotations

import ast
import json
import keyword
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TYPES = ("Bool", "Bytes", "Float32", "Float64", "Int32", "Int64", "String", "UnixTimestamp")
_NAME = re.compile(r"[a-z][a-z0-9_]*")

_VIEW = '''\
"""{title}: say here what it knows, and about whom."""

from __future__ import annotations

from datetime import timedelta

from entities import {entity}
from feast import FeatureView, Field, FileSource
from feast.types import {types}

{view}_file = FileSource(
    name="{view}_file",
    path="data/{view}.parquet",  # columns: the join key, event_timestamp, and the features
    timestamp_field="event_timestamp",
)

{view} = FeatureView(
    name="{view}",
    entities=[{entity}],
    ttl=timedelta(days=30),  # older values are served as STALE
    schema=[
{fields}    ],
    source={view}_file,
    online=True,
    description="{title}",
    tags={{"data_class": "{data_class}", "owner": "{owner}"}},
)
'''

_RULES = """\
# What the values must keep. A row that breaks a rule is refused; with `action: mark` it is served
# and marked. Kinds: range: {{min, max}}, category: [...], null_share: {{max, rows}}.
view: {view}
rules:{rules}
"""

_TEST = '''\
"""The view `{view}`: its definition and its rules are sound."""

from __future__ import annotations

from services.cli.features_new import definitions
from tests.support import ROOT


def test_{view}_has_its_features() -> None:
    """What models and rules rely on: names and types."""
    views = definitions(ROOT / "{repo}")
    assert views["{view}"] == {{
{fields}    }}
'''


class AuthorError(Exception):
    """The definitions have mistakes; a line `file:line: mistake` for each."""


def definitions(repo: Path, *, apply: bool = False) -> dict[str, dict[str, str]]:
    """Return the features and Feast types of each view in a repo, after a check of all of it.

    Args:
        repo: The Feast repo.
        apply: Also `feast apply` it.

    Raises:
        AuthorError: naming file and line of each mistake.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "services.features.definition_check"),
            *(str(repo.resolve()), "apply" if apply else "check"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise AuthorError(f"{repo}:1: the check itself failed: {done.stderr[-800:]}") from None
    if "mistakes" in answer:
        raise AuthorError("\n".join(answer["mistakes"]))
    views: dict[str, dict[str, str]] = answer["views"]
    return views


def scaffold(
    repo: Path,
    tests: Path,
    view: str,
    *,
    entity: str,
    fields: Mapping[str, str],
    service: str,
    data_class: str,
    owner: str,
) -> list[Path]:
    """Write the files of a new view; return what was written or changed.

    Args:
        repo: The Feast repo.
        tests: The folder of the view's test.
        view: The view's name.
        entity: Name of a variable in `entities.py`.
        fields: Feast types by feature, such as "Float64".
        service: A feature service of `feature_services.py` to add it to; empty: none.
        data_class: The view's.
        owner: Who answers for it.

    Raises:
        AuthorError: a name can't be used, or a file is there already. Nothing is written then.
    """
    test = tests / f"test_{view}.py"
    files = [repo / f"{view}.py", repo / "validation" / f"{view}.yaml", test]
    _refuse(repo, view, entity, fields, files)
    services = repo / "feature_services.py"
    changed = _with_view(services, service, view) if service else ""
    types = ", ".join(sorted(set(fields.values())))
    schema = "".join(f'        Field(name="{n}", dtype={t}),\n' for n, t in fields.items())
    title = view.replace("_", " ").capitalize()
    known = {
        name: {"UnixTimestamp": "UNIX_TIMESTAMP", "Float64": "DOUBLE", "Float32": "FLOAT"}.get(
            kind, kind.upper()
        )
        for name, kind in fields.items()
    }
    rules = "".join(f"\n  - {{feature: {n}, null_share: {{max: 0.2, rows: 500}}}}" for n in fields)
    expected = "".join(f'        "{name}": "{kind}",\n' for name, kind in known.items())
    texts = [
        _VIEW.format(
            title=title,
            entity=entity,
            view=view,
            types=types,
            fields=schema,
            data_class=data_class,
            owner=owner,
        ),
        _RULES.format(view=view, rules=rules),
        _TEST.format(view=view, repo=repo.name, fields=expected),
    ]
    for path, text in zip(files, texts, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if changed:
        services.write_text(changed, encoding="utf-8")
        files.append(services)
    return files


def _refuse(
    repo: Path, view: str, entity: str, fields: Mapping[str, str], files: Sequence[Path]
) -> None:
    wrong = [
        f"{name!r} is no name: lower case letters, digits, underscores"
        for name in (view, *fields)
        if not _NAME.fullmatch(name) or keyword.iskeyword(name)
    ]
    wrong += [
        f"{kind!r} is no type; there are: {', '.join(TYPES)}"
        for kind in fields.values()
        if kind not in TYPES
    ]
    wrong += [f"{path} is there already" for path in files if path.exists()]
    entities = repo / "entities.py"
    known = _assigned(entities) if entities.is_file() else []
    if entity not in known:
        names = ", ".join(known) or "none"
        wrong.append(f"{entities}:1: there is no entity {entity!r}; there are: {names}")
    if wrong:
        raise AuthorError("\n".join(wrong))


def _assigned(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    return [t.id for node in assignments for t in node.targets if isinstance(t, ast.Name)]


def _with_view(path: Path, service: str, view: str) -> str:
    """Return the text of `feature_services.py` with the view in a service's list."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {item.arg: item.value for item in call.keywords}
        name, features = given.get("name"), given.get("features")
        if not isinstance(name, ast.Constant) or name.value != service:
            continue
        if not isinstance(features, ast.List) or not features.elts:
            raise AuthorError(f"{path}:{call.lineno}: features is no list: add {view} by hand")
        lines = text.splitlines(keepends=True)
        last = features.elts[-1]
        assert last.end_lineno is not None
        line = lines[last.end_lineno - 1]
        lines[last.end_lineno - 1] = (
            line[: last.end_col_offset] + f", {view}" + line[last.end_col_offset :]
        )
        imports = [
            node
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        ]
        after = [node for node in imports if (node.module or "") < view]
        at = (after[-1].end_lineno or 0) if after else imports[0].lineno - 1
        lines.insert(at, f"from {view} import {view}\n")
        return "".join(lines)
    raise AuthorError(f"{path}:1: there is no feature service {service!r}")
