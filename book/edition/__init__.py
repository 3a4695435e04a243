"""The book's own code: what its pages draw, compute from records and show. It imports ``isa``, never the reverse."""
