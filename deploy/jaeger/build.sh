#!/bin/sh
# Builds the real Jaeger v2 from its Go module into .twinpath/bin/jaeger (`make jaeger`).
#
# Module version v1.76.0 holds Jaeger v2.13.0: both were released from one commit, and it is the last
# tag that Go can import (it takes no v2 tag for a module path without /v2). A later commit can be
# named, JAEGER_REVISION=798e4b0fcf22 for v2.20.0, where the module proxy serves commits.
#
# `go install` refuses Jaeger, because its go.mod holds a `replace`. So the module is fetched,
# checked against Go's checksum database, and built where it lies, with its own go.mod and go.sum:
# the very dependencies that its authors tested. Go's settings (GOPROXY, GOFLAGS, GOSUMDB, ...)
# hold as they are. The module has no web page in it: the query API answers, the page needs
# Jaeger's image.
set -eu

revision=${JAEGER_REVISION:-v1.76.0}
module=github.com/jaegertracing/jaeger
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
bin=$root/.twinpath/bin
mark=$bin/.jaeger-$revision

if [ -x "$bin/jaeger" ] && [ -e "$mark" ]; then
    echo "jaeger ($revision) is built: .twinpath/bin/jaeger"
    exit 0
fi
if ! command -v go >/dev/null 2>&1; then
    echo "Jaeger is built with Go, and there is no 'go' on PATH." >&2
    echo "Install Go 1.24.6 or newer (https://go.dev/dl), or run Jaeger's image and set" >&2
    echo "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317 before 'make up'." >&2
    exit 2
fi

mkdir -p "$bin"
echo "building jaeger ($revision) with $(go env GOVERSION); many minutes the first time on few cores"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# A module of our own around the download, so that no go.mod above this folder has a say.
(cd "$scratch" && go mod init scratch.invalid/jaeger >/dev/null 2>&1)
source=$(cd "$scratch" && go mod download -json "$module@$revision" >module.json &&
    sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p' module.json)
[ -n "$source" ] || { cat "$scratch/module.json" >&2; exit 1; }
# -s -w leaves the debugger's tables out: half the size.
CGO_ENABLED=0 go build -C "$source" -mod=readonly -trimpath -ldflags "-s -w" \
    -o "$bin/jaeger.new" ./cmd/jaeger
mv "$bin/jaeger.new" "$bin/jaeger"
rm -f "$bin"/.jaeger-*
touch "$mark"
echo "built .twinpath/bin/jaeger"
