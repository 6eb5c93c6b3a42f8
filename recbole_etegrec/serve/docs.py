"""The page ``/docs``: what may be asked, made of the application's OpenAPI, without scripts."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "minItems": "items at least",
    "maxItems": "items at most",
    "maxLength": "characters at most",
}
_HEAD = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Requests</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>:root { color-scheme: light dark; } body { margin: 0 auto; padding: 1rem; max-width: 50rem;
font: 15px/1.45 system-ui, sans-serif; } h2 { font-size: 1.05rem; border-top: 2px solid;
padding-top: .5rem; margin-top: 1.5rem; } ul { padding-left: 1.2rem; }</style></head><body>
<h1>Requests</h1>
<p>The same <a href="openapi.json">as OpenAPI</a>; <a href="./">a page to try it on</a>.</p>
"""


def docs_page(openapi: dict[str, Any]) -> str:
    """The page of an OpenAPI description."""
    return f"{_HEAD}{''.join(_paths(openapi))}</body></html>\n"


def _paths(openapi: dict[str, Any]) -> Iterator[str]:
    schemas = openapi.get("components", {}).get("schemas", {})
    for path, methods in openapi["paths"].items():
        for method, what in methods.items():
            yield f"<h2>{method.upper()} <code>{escape(path)}</code></h2>"
            yield f"<p>{escape(what.get('description') or what['summary'])}</p>"
            fields = {one["name"]: one["schema"] for one in what.get("parameters", [])}
            for content in what.get("requestBody", {}).get("content", {}).values():
                fields |= schemas[content["schema"]["$ref"].rpartition("/")[2]]["properties"]
            if fields:
                yield "<ul>"
                for name, schema in fields.items():
                    yield f"<li><code>{escape(name)}</code>: {escape(_plain(schema))}</li>"
                yield "</ul>"


def _plain(schema: dict[str, Any]) -> str:
    """What a field may be, in words."""
    kinds = [one["type"] for one in schema.get("anyOf", [schema]) if one["type"] != "null"]
    words = [" or ".join(kinds)]
    if "items" in schema:
        words = [f"{words[0]} of {schema['items']['type']}s"]
    for bound, text in _BOUNDS.items():
        if bound in schema:
            words.append(f"{text} {schema[bound]:g}")
    if schema.get("default") not in (None, ""):
        words.append(f"default {json.dumps(schema['default'])}")
    return ", ".join(words)
