"""A Sphinx extension: what a reader sees of nbdev's notebooks.

Notebooks and Markdown are rewritten just before MyST reads them. Sphinx does the rest: pages, links, search."""
import ast
import json
import re
from pathlib import Path

import yaml
from definitions import code, comments, definition, escape, parameter_table, table, text_of
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.project import Project
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode


# Cells

def markdown_cell(text):
    return dict(cell_type='markdown', id='site', metadata={}, source=text)


def code_cell(cell, source, folded=''):
    "A code cell as it is, or folded under a line of text"
    metadata = {}
    if folded:
        metadata = dict(tags=['hide-input'], mystnb=dict(code_prompt_show=folded, code_prompt_hide=folded))
    return cell | dict(metadata=metadata, source=source)


def exported(cell, source):
    "Public definitions are documented and their source folded; private ones are folded; imports do not show"
    body = [node for node in ast.parse(source).body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    named = [node for node in body if hasattr(node, 'name')]
    public = [node for node in named if not node.name.startswith('_')]
    if not body:
        return []
    if not named:
        return [code_cell(cell, source)]
    names = ', '.join(node.name for node in public or named)
    notes = comments(source)
    documented = [markdown_cell('\n'.join(definition(node, notes) for node in public))] if public else []
    return [*documented, code_cell(cell, source, f'Source of {names}')]


def only_imports(source):
    try:
        body = ast.parse(re.sub(r'^%.*', '', source, flags=re.M)).body
    except SyntaxError:
        return False
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def run_parameters(source):
    "The parameters cell of a run notebook"
    notes = comments(source)
    rows = [[node.target.id, text_of(node.annotation).strip("'"), text_of(node.value), notes.get(node.end_lineno, '')]
            for node in ast.parse(source).body]
    return markdown_cell('## Parameters\n\n' + parameter_table(rows))


def shown(cell):
    "The cells that a reader sees of one cell"
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
        return [cell | dict(source=source)]
    if cell['cell_type'] != 'code' or re.search(r'^#\|\s*(hide|default_exp)\b', source, re.M):
        return []
    if 'parameters' in cell['metadata'].get('tags', []):
        return [run_parameters(source)]
    plain = '\n'.join(line for line in source.splitlines() if not line.startswith('#|')).strip()
    if re.search(r'^#\|\s*export', source, re.M):
        return exported(cell, plain)
    return [code_cell(cell, plain)] if plain and (cell['outputs'] or not only_imports(plain)) else []


# Pages

def heading(path):
    "Title and lead of a notebook or a Markdown file"
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.ipynb':
        text = ''.join(json.loads(text)['cells'][0]['source'])
    title = re.search(r'^# +(.+)', text, re.M)
    lead = re.search(r'^> +(.+(?:\n> *.+)*)', text, re.M)
    return title[1], re.sub(r'\n> *', ' ', lead[1]) if lead else ''


def page_name(name):
    "The page of a source; Sphinx has a page `search` of its own"
    return 'search-run' if name == 'search' else name


class Pages(Project):
    "The pages of the site, none of them called `search`"

    def path2doc(self, filename):
        return page_name(super().path2doc(filename))


def name_pages(app):
    app.project.__class__ = Pages


def keep_pictures(app):
    "Pictures of notebooks lie in the folder of the site, where the other temporary files are"
    folder = Path(app.doctreedir)/'pictures'
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(folder))


def module_of(notebook):
    "The module that a notebook exports"
    text = '\n'.join(''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'code')
    match = re.search(r'^#\|\s*default_exp\s+(\S+)', text, re.M)
    return match and ('asc' if match[1] == '__init__' else f'asc.{match[1]}')


def origin(module, path):
    "Where a page comes from, below its title"
    if not module:
        return f'{{.origin}}\n`nbs/{path}`'
    return f':::{{py:module}} {module}\n:::\n\n{{.origin}}\n`{module}` is made from `nbs/{path}`'


def rewrite_links(text, folder, srcdir):
    "Links to folders and recipes lead to the pages that describe them; the index speaks of paths from the root"
    def target(match):
        link = match[1].removeprefix('nbs/') if folder == srcdir else match[1]
        if (folder/link).is_dir() and (folder/link/'README.md').is_file():
            link = f'{link.rstrip("/")}/README.md'
        if link.endswith('.yaml'):
            link = f'{Path(link).parent}/README.md#{Path(link).stem}'
        return f']({link})'
    return re.sub(r'\]\((?!\w+:|#)([^()\s]+)\)', target, text)


def sidebar(srcdir, config):
    "The index knows every page"
    tutorials = [f'tutorials/{p.stem}' for p in sorted((srcdir/'tutorials').glob('*.md'))]
    notebooks = [p.stem for p in srcdir.glob('*.ipynb') if p.stem != 'index' and not p.stem[0].isdigit()]
    files = [f'{p.parent.name}/README' for p in sorted(srcdir.glob('*/README.md')) if not has_notebooks(p.parent)]
    rank = {name: i for i, name in enumerate(config.runs)}
    notebooks.sort(key=lambda name: (rank.get(name, len(rank)), name))
    parts = {
        'Tutorials': tutorials,
        'Run notebooks': [*files, *map(page_name, notebooks)],
        'Components': components(srcdir, config.rooms),
    }
    return '\n'.join(toctree(pages, f':caption: {caption}\n') for caption, pages in parts.items())


def components(srcdir, rooms):
    "Rooms with what they are for, and the modules outside of them"
    homes = {}
    for path in srcdir.glob('[0-9]*.ipynb'):
        module = module_of(json.loads(path.read_text(encoding='utf-8')))
        homes[module.removeprefix('asc.') if module != 'asc' else '__init__'] = path.stem
    for path in srcdir.glob('*/README.md'):
        if has_notebooks(path.parent):
            room, lead = heading(path)
            homes[room] = f'{room}: {lead[0].lower()}{lead[1:].rstrip(".")} <{room}/README>'
    return [homes[room] for room in rooms if room in homes]


def toctree(pages, options=''):
    return f'```{{toctree}}\n:hidden:\n{options}\n' + '\n'.join(pages) + '\n```\n'


def room_page(folder):
    "The notebooks of a room"
    books = sorted(folder.glob('*.ipynb'))
    rows = [[f'[{heading(book)[0]}]({book.name})', heading(book)[1]] for book in books]
    return table(['notebook', 'what it is'], rows) + '\n' + toctree([book.stem for book in books])


def remarks_of(text):
    "The lines of comment that a YAML file begins with"
    return re.match(r'(?:#.*\n)*', text)[0]


def file_section(path):
    "A YAML file as it is written, what is said of it above"
    text = path.read_text(encoding='utf-8')
    remarks = remarks_of(text)
    meaning = ' '.join(line.lstrip('# ') for line in remarks.splitlines())
    return f'## {path.stem}\n\n{escape(meaning)}\n\n```yaml\n{text[len(remarks):]}```\n'


def file_page(folder):
    "The YAML files of a folder, recipes with their main values in a table"
    files = sorted(folder.glob('*.yaml'), key=lambda path: path.stem)
    values = recipe_table(files) if folder.name == 'recipes' else ''
    return values + '\n' + '\n'.join(map(file_section, files))


def recipe_table(files):
    "The main values of recipes"
    columns = 'frontend', 'backbone', 'pipeline', 'epochs', 'bs', 'lr'
    rows = []
    for path in files:
        values = yaml.safe_load(path.read_text(encoding='utf-8'))
        rows.append([f'[{path.stem}](#{path.stem})', *(code(str(values.get(key, ''))) for key in columns)])
    return table(['recipe', *columns], rows)


def has_notebooks(folder):
    return any(folder.glob('*.ipynb'))


def read_markdown(path, text):
    "A tutorial as it is; a README with what its folder holds"
    if path.name != 'README.md':
        return text
    page = room_page if has_notebooks(path.parent) else file_page
    return f'{text}\n{page(path.parent)}'


def read_notebook(path, notebook, app):
    "The cells that show, on the index with the sidebar, elsewhere with where the page comes from"
    cells = [part for cell in notebook['cells'] for part in shown(cell)]
    if path.stem == 'index':
        cells.append(markdown_cell(sidebar(Path(app.srcdir), app.config)))
    else:
        cells.insert(1, markdown_cell(origin(module_of(notebook), path.relative_to(app.srcdir))))
    for number, cell in enumerate(cells):
        cell['id'] = f'cell-{number}'
    metadata = notebook['metadata'] | dict(language_info=dict(name='python', pygments_lexer='ipython3'))
    return notebook | dict(cells=cells, metadata=metadata)


def read_source(app, docname, content):
    "Rewrite a page before MyST reads it"
    srcdir, path = Path(app.srcdir), Path(app.env.doc2path(docname))
    if path.suffix == '.md':
        content[0] = rewrite_links(read_markdown(path, content[0]), path.parent, srcdir)
        return
    notebook = read_notebook(path, json.loads(content[0]), app)
    for cell in notebook['cells']:
        if cell['cell_type'] == 'markdown':
            cell['source'] = rewrite_links(cell['source'], path.parent, srcdir)
    content[0] = json.dumps(notebook)


# Names and formulas

class LinkNames(SphinxPostTransform):
    "A name between back-quotes leads to its definition, unless it could mean something else"
    default_priority = 400

    def run(self, **_):
        homes = self.known()
        for node in list(self.document.findall(nodes.literal)):
            name = re.sub(r'\(.*\)$', '', node.astext()).removeprefix('asc.')
            if len(homes.get(name, [])) == 1 and not self.stays(node):
                docname, anchor, kind = homes[name][0]
                if kind != 'module' or docname != self.env.docname:
                    link = make_refnode(self.app.builder, self.env.docname, docname, anchor, node.deepcopy())
                    node.replace_self(link)

    def stays(self, node):
        "Whether it is part of a title or a link already, or begins the row of a table, as a parameter does"
        while node.parent is not None:
            if isinstance(node, (nodes.reference, nodes.title)):
                return True
            if isinstance(node, nodes.entry) and node.parent.index(node) == 0:
                return True
            node = node.parent
        return False

    def known(self):
        "Places by name: dotted names, and last parts that are not as short as a variable"
        homes = {}
        for full, entry in self.env.domains['py'].objects.items():
            place = entry.docname, entry.node_id, entry.objtype
            last = full.rpartition('.')[2]
            names = {full.removeprefix('asc.')} | ({last} if len(last) > 3 and entry.objtype != 'module' else set())
            for name in names:
                homes.setdefault(name, []).append(place)
        return homes


def inline_math(self, node):
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def display_math(self, node):
    self.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def setup(app):
    app.add_config_value('rooms', [], 'env')
    app.add_config_value('runs', [], 'env')
    app.connect('builder-inited', name_pages)
    app.connect('builder-inited', keep_pictures, priority=900)
    app.connect('source-read', read_source)
    app.add_post_transform(LinkNames)
    app.add_html_math_renderer('mathml', (inline_math, None), (display_math, None))
    return dict(version='1', parallel_read_safe=True, parallel_write_safe=True)
