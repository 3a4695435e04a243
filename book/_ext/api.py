"""The programming interface from docstrings: what ``automodule`` would say twice, or that nobody wrote, is left out."""

from __future__ import annotations

import importlib

from sphinx.ext import autosummary


def offered_above(module: str, name: str) -> bool:
    """Whether a package around a module offers the same class or function, which is then documented there.

    Constants are documented where they are set, since that is where their words stand.
    """
    parts = module.split(".")
    packages = (importlib.import_module(".".join(parts[:depth])) for depth in range(1, len(parts)))
    own = getattr(importlib.import_module(module), name, None)
    return callable(own) and any(
        name in getattr(package, "__all__", ()) and getattr(package, name) is own for package in packages
    )


def skip(app, what, name, member, skipped, options):
    if what == "module" and offered_above(app.env.temp_data["autodoc:module"], name):
        return True
    if what == "class" and str(getattr(member, "__doc__", "")).startswith("Alias for field number"):
        return True  # fields of a named tuple that have no words of their own
    return None


_COLON = "\ue000"  # stands for a colon while Napoleon reads


def keep_sentences(app, what, name, obj, options, lines):
    """Napoleon takes what stands before a colon in a property's first line for its type; here it is a sentence."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = lines[0].replace(":", _COLON)


def colons_again(app, what, name, obj, options, lines):
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def find_by_last_name(app, env, node, contnode):
    """A docstring names its neighbours by their last name, also where a package above offers it under its own name."""
    if node.get("refdomain") != "py" or node.get("refspecific"):
        return None
    domain = env.get_domain("py")
    found = domain.find_obj(env, None, None, node["reftarget"], node["reftype"], searchmode=1)
    if len(found) != 1:
        return None
    node["refspecific"] = True
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], node["reftarget"], node, contnode)


def setup(app):
    # a summary is a first sentence, which does not end at these
    autosummary.WELL_KNOWN_ABBREVIATIONS = ("et al.", "e.g.", "i.e.", "Sec.", "App.", "Fig.", "Eq.")
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", keep_sentences, priority=400)  # before Napoleon
    app.connect("autodoc-process-docstring", colons_again, priority=600)
    app.connect("missing-reference", find_by_last_name)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
