"""The programming interface from docstrings: each member once, and names that stand for what a package above offers."""

from __future__ import annotations

import importlib
from functools import partial

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


def replace(old, new, app, what, name, obj, options, lines):
    """Replace a character in the words about a property."""
    if what in ("attribute", "data", "property"):
        lines[:] = [line.replace(old, new) for line in lines]


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
    # between these two Napoleon would read what stands before a colon as a type
    app.connect("autodoc-process-docstring", partial(replace, ":", _COLON), priority=400)
    app.connect("autodoc-process-docstring", partial(replace, _COLON, ":"), priority=600)
    app.connect("missing-reference", find_by_last_name)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
