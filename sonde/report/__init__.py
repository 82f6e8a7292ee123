"""Tables for the terminal, and one self-contained HTML page.

`tables` holds rich renderables, `page` writes HTML; import them on use, for they bring rich and jinja2 along.
"""
