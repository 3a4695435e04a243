"""Keep live code cells off the pages: their script would be fetched from a host, and no page has such cells.

Jupyter Book loads ``sphinx_thebe`` always, which names that script on every page (twice, an error in the browser).
"""

from __future__ import annotations


def disconnect_live_code(app, config):
    for event, listeners in app.events.listeners.items():
        if event == "builder-inited":  # where its style sheet is announced, which the pages name already
            continue
        for listener in list(listeners):
            if listener.handler.__module__.partition(".")[0] == "sphinx_thebe":
                app.disconnect(listener.id)


def setup(app):
    app.connect("config-inited", disconnect_live_code)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
