"""Configuration of Sphinx for the site: `make docs`."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version as version_of
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))
# Notebooks lie beside this folder, and Sphinx reads what is in it.
shutil.rmtree(DOCS / "notebooks", ignore_errors=True)
shutil.copytree(DOCS.parent / "notebooks", DOCS / "notebooks")

project = "dask_onnx"
author = "The dask_onnx developers"
copyright = "The dask_onnx developers, Apache-2.0"  # noqa: A001 - the name that Sphinx reads
release = version_of("dask-onnx")
version = release.partition("+")[0]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_nb",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
    "configuration_table",
    "inline_drawing",
    "root_pages",
]
exclude_patterns = ["_build", "_templates", "images/**", "notebooks/*.py", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]
root_doc = "index"

# -- Docstrings. No inventory of other projects is fetched: the site builds without a network.
autosummary_generate = True
autosummary_imported_members = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "autolink"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# -- Markdown and notebooks. Notebooks are shown with the outputs that they are stored with;
# tests/test_notebooks.py runs them.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_substitutions = {"version": version}
myst_heading_anchors = 3
suppress_warnings = [
    # Cells have the lexer of the kernel's language, which Pygments knows under another name.
    "mystnb.unknown_mime_type",
]

# -- Pages
html_theme = "pydata_sphinx_theme"
html_title = "dask_onnx"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "dask_onnx"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "show_nav_level": 1,
    "navigation_depth": 3,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": [], "compared": [], "get_started": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

# -- Links to other sites: `make docs-links`
linkcheck_timeout = 15
linkcheck_retries = 1
linkcheck_workers = 4

# -- Names in docstrings that no page of this site describes: parts of Python and of Dask, and
# options of the class itself.
nitpick_ignore = [
    ("py:obj", "concurrent.futures.Future"),
    ("py:obj", "distributed.Client.submit"),
    ("py:obj", "warnings.warn"),
    ("py:obj", "n_stages"),
]
