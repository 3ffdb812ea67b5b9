"""The generated parts of the pages, a module a subject; `results/write_pages.py` writes them."""
