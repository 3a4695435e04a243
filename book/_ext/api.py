"""The programming interface from docstrings: each member once, and names that stand for what a package above offers."""

from __future__ import annotations

import importlib

from sphinx.ext import autosummary


def offered_above(module: str, name: str) -> bool:
    """Return True if a package around a module offers the same class or function, which is then documented there."""
    value = getattr(importlib.import_module(module), name, None)
    packages = [importlib.import_module(module[:end]) for end, letter in enumerate(module) if letter == "."]
    offers = [getattr(package, name) for package in packages if name in getattr(package, "__all__", ())]
    return callable(value) and any(offer is value for offer in offers)


def skip(app, what, name, member, skipped, options):
    """Leave out what a package above documents, and fields of named tuples that have no docstring of their own."""
    above = what == "module" and offered_above(app.env.temp_data["autodoc:module"], name)
    return above or str(getattr(member, "__doc__", "")).startswith("Alias for field number") or None


def keep_colons(app, what, name, obj, options, lines):
    """Put an escaped newline before the words about a property, where Napoleon would read a type up to a colon."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\")


def find_by_last_name(app, env, node, contnode):
    """Resolve a reference to a member by its last name; where several objects have it, Sphinx warns."""
    if node.get("refdomain") == "py" and not node.get("refspecific"):
        node["refspecific"] = True
        where = env, node["refdoc"], app.builder, node["reftype"], node["reftarget"]
        return env.get_domain("py").resolve_xref(*where, node, contnode)


def setup(app):
    # a summary is a first sentence, which does not end at these
    autosummary.WELL_KNOWN_ABBREVIATIONS = ("et al.", "e.g.", "i.e.", "Sec.", "App.", "Fig.", "Eq.")
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before Napoleon
    app.connect("missing-reference", find_by_last_name)
