"""How Sphinx builds the documentation."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "docs" / "_extensions"), str(ROOT)]

from hvd_compress import __version__  # noqa: E402

project = "hvd_compress"
author = "the authors of hvd_compress"
copyright = author
release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "methods",
    "pictures",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Class attributes", "params_style")]
html_theme = "furo"
html_title = f"hvd_compress {release}"
html_static_path: list[str] = []
copybutton_prompt_text = r"\$ "
