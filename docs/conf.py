"""The documentation's site: `sphinx-build -W -n docs FOLDER`. `EDLM_NOTEBOOKS=cache` also runs the notebooks."""

import os
import sys
from pathlib import Path

import edlm

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "edlm"
copyright = "the edlm authors"
version = release = edlm.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "key_tables",
    "docstrings",
    "mathml",
    "modules",
]
exclude_patterns = ["extensions"]
html_theme = "furo"
html_title = "edlm"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = os.environ.get("EDLM_NOTEBOOKS", "off")
nb_execution_timeout = 600
nb_execution_raise_on_error = True

default_role = "literal"  # docstrings put code between single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False

# Names of other libraries need inventories that would have to be fetched. Names of ours must lead somewhere.
nitpick_ignore_regex = [
    ("py:class", r"tuple\[int"),  # a type is cut at its comma
    ("py:.*", r"(?!edlm\.)\w+\..*"),
    ("py:.*", r"edlm\..*\.([A-Z]|_\w+)"),  # type variables, and what is private
]
