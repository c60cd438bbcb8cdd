"The site as Sphinx makes it of nbs/: `make docs`"
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = 'asc'
copyright = '2026 onwards, the asc developers'
extensions = ['myst_nb', 'notebooks']
exclude_patterns = ['site', '**/.ipynb_checkpoints']

# notebooks are shown as they were committed, never executed
nb_execution_mode = 'off'
nb_ipywidgets_js = {}
nb_render_markdown_format = 'gfm'
myst_enable_extensions = ['attrs_block', 'colon_fence', 'dollarmath']
myst_heading_anchors = 3
html_math_renderer = 'mathml'
add_module_names = False
python_display_short_literal_types = True
suppress_warnings = ['myst.header', 'misc.highlighting_failure']

# nothing is loaded from elsewhere, and a page opened from a folder may fetch nothing
html_theme = 'furo'
html_title = 'asc'
html_static_path = ['static']
html_css_files = ['asc.css']
html_show_search_summary = False
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False
templates_path = []
pygments_style = 'friendly'
pygments_dark_style = 'github-dark'

# the order of the sidebar: rooms and modules in the order of imports (as in tests/rooms.py), run notebooks by use
rooms = ['core', 'run', 'data', 'frontend', 'augment', 'backbone', 'model', 'score', 'train', 'teach', 'size', 'export',
         'load', 'experiment', 'use', 'entry', 'bench', 'cli', '__init__']
runs = ['train', 'sweep', 'search', 'report', 'evaluate', 'explore', 'logits', 'distill', 'soup', 'devices', 'quantize',
        'submit', 'chain', 'demo', 'benchmark', 'zoo']
