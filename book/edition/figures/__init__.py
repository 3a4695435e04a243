"""One drawing function a figure; numbers in, a matplotlib ``Figure`` out, nothing computed or trained here.

One module a chapter, and one style for all of them: :mod:`edition.figures.style`.
"""
