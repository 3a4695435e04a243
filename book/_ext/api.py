"""The programming interface from docstrings: each member once, and names that stand for what a package above offers."""

from __future__ import annotations

import importlib

from sphinx.ext import autosummary

_COLON = "\ue000"  # stands for a colon while Napoleon reads


def offered_above(module: str, name: str) -> bool:
    """Return True if a package around a module offers the same class or function, which is then documented there."""
    value = getattr(importlib.import_module(module), name, None)
    packages = [importlib.import_module(module[:end]) for end, letter in enumerate(module) if letter == "."]
    return callable(value) and any(
        name in getattr(package, "__all__", ()) and getattr(package, name) is value for package in packages
    )


def skip(app, what, name, member, skipped, options):
    """Leave out what a package above documents, and fields of named tuples that have no docstring of their own."""
    above = what == "module" and offered_above(app.env.temp_data["autodoc:module"], name)
    return above or str(getattr(member, "__doc__", "")).startswith("Alias for field number") or None


def hide_colon(app, what, name, obj, options, lines):
    """Keep Napoleon from reading a type before a colon in the first sentence about a property."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = lines[0].replace(":", _COLON)


def restore_colon(app, what, name, obj, options, lines):
    """Undo :func:`hide_colon`."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def find_by_last_name(app, env, node, contnode):
    """Resolve a reference to a member by its last name, where only one object has it."""
    if node.get("refdomain") != "py" or node.get("refspecific"):
        return None
    node["refspecific"] = True
    domain = env.get_domain("py")
    kind, target = node["reftype"], node["reftarget"]
    if len(domain.find_obj(env, None, None, target, kind, searchmode=1)) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, kind, target, node, contnode)


def setup(app):
    # a summary is a first sentence, which does not end at these
    autosummary.WELL_KNOWN_ABBREVIATIONS = ("et al.", "e.g.", "i.e.", "Sec.", "App.", "Fig.", "Eq.")
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", hide_colon, priority=400)  # before Napoleon
    app.connect("autodoc-process-docstring", restore_colon, priority=600)
    app.connect("missing-reference", find_by_last_name)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
