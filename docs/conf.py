"""Sphinx: MyST notebooks, furo, and nothing that a page would have to fetch."""
import configparser
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
settings = configparser.ConfigParser(interpolation=None)
settings.read(HERE.parent / "settings.ini", encoding="utf-8")
told = settings["DEFAULT"]

project, author, release = told["lib_name"], told["author"], told["version"]
copyright = told["copyright"]
html_title = project

extensions = ["myst_nb", "mathml", "navigation"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = []
templates_path = ["templates"]

nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_ipywidgets_js = {}
nb_code_prompt_show = "Show {type}"
nb_code_prompt_hide = "Hide {type}"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline", "attrs_block", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

add_module_names = False
python_maximum_signature_line_length = 1  # a parameter a line, but where api.py says otherwise
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["nexuslab.css"]
html_favicon = "_static/mark.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style, pygments_dark_style = "default", "github-dark"
BRAND = {"light": {"primary": "#0f5f8c", "content": "#0b6e99"}, "dark": {"primary": "#7cc6ee", "content": "#7cc6ee"}}
html_theme_options = {
    "light_logo": "mark.svg", "dark_logo": "mark.svg", "sidebar_hide_name": False, "top_of_page_buttons": [],
    "light_css_variables": {
        "color-brand-primary": BRAND["light"]["primary"], "color-brand-content": BRAND["light"]["content"],
        "admonition-title-font-size": "0.9rem",
    },
    "dark_css_variables": {
        "color-brand-primary": BRAND["dark"]["primary"], "color-brand-content": BRAND["dark"]["content"]
    },
}
