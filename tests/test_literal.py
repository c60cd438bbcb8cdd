"""Names that act in HTML, Markdown, figures and spreadsheets are shown letter for letter, wherever they come out."""
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

import launch
from asc.data.layouts import META
from asc.data.names import ClipName
from asc.run.folder import Run
from asc.run.text import from_sheet, literal, markdown_table, plain, sheet
from asc.score.metrics import read_predictions
from asc.score.plots import plot_confusion
from asc.score.report import list_summary, pair_caption
from asc.score.tables import to_markdown
from asc.use.commands import _csv_text
from asc.use.microphones import style_comparison

SCENES = ['<img src=x onerror=alert(1)>', 'a|b', '$x^{$', '=cmd()']
DEVICES = ['<b onclick=x>', '![y](http:y)']
ACTS = ('onerror', 'onclick', 'http:y')


class Acting(HTMLParser):
    "Finds elements and attributes that came from a name"
    def __init__(self, page):
        super().__init__()
        self.found, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        values = [str(part) for pair in attributes for part in pair]
        acts = any(value.startswith(ACTS) for value in values) or ('src', 'x') in attributes
        if acts or tag.startswith(('img src', 'b on')): self.found.append((tag, attributes))

    def handle_data(self, text): self.words.append(text)


def page_of(markdown):
    "What nbconvert makes of Markdown"
    from nbconvert.filters import markdown2html
    return markdown2html(markdown)


def corpus_of_names(folder):
    "A corpus whose scenes and devices have such names, three places a scene"
    (folder/'audio').mkdir(parents=True)
    rows, noise = [], np.random.default_rng(0)
    for i, scene in enumerate(SCENES):
        for place in range(3):
            for device in DEVICES:
                clip = ClipName(scene, '<i>', 3*i + place, 3*i + place, 0, device.replace('/', ''))
                sf.write(folder/str(clip), noise.uniform(-.1, .1, 16000), 16000, 'PCM_16')
                rows.append((str(clip), scene, f'<i>-{clip.location}', clip.device))
    for name, part in dict(meta=rows, split100=rows[:], test=rows).items():
        keep = {'split100': (0, 1), 'test': (2,)}.get(name, (0, 1, 2))
        head = META if name == 'meta' else META[:2]
        lines = [row[:len(head)] for row in part if int(row[2].rpartition('-')[2]) % 3 in keep]
        (folder/f'{name}.csv').write_text('\n'.join('\t'.join(line) for line in [head, *lines]), encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def run(tmp_path_factory, kernels):
    "A training on such a corpus"
    folder = tmp_path_factory.mktemp('names')
    options = dict(data_dir=corpus_of_names(folder/'=x <u>'), epochs=1, bs=4, valid=0.0, subset=100, out=folder/'run')
    launch.check(launch.papermill('train', kernels=kernels, backbone='cnn3', frontend='cnn3', **options))
    return folder/'run'


def test_the_executed_notebook_as_a_page(run):
    "No element and no attribute comes from a name, and every name is there to be read"
    from nbconvert import HTMLExporter
    page = Acting(HTMLExporter().from_filename(str(run/'train.ipynb'))[0])
    assert not page.found
    words = ' '.join(page.words)
    for name in SCENES: assert name in words
    assert 'Left out' not in words


def test_every_table_of_the_run(run):
    "Its Markdown has the same number of cells in every row, and nothing acts; no cell of its CSV runs"
    for path in run.glob('*.md'):
        text = path.read_text(encoding='utf-8')
        counts = {line.replace(r'\|', '').count('|') for line in text.splitlines() if line.startswith('|')}
        assert len(counts) == 1, path
        assert not Acting(page_of(text)).found
    for path in run.glob('*.csv'):
        cells = pd.read_csv(path, header=None, dtype=str).stack()
        assert not cells[cells.str.match(r'[=+@\t]|-\D')].tolist(), path


def test_names_are_read_back(run):
    "predictions.csv gives the names of the corpus"
    answers = read_predictions(run/'predictions.csv')
    assert set(answers.scene_label) == set(SCENES) == set(answers.columns[4:])
    assert set(answers.device) == {device.replace('/', '') for device in DEVICES}
    assert answers.filename.str.startswith('audio/').all()


# ---------------------------------------------------------------- one by one

ODD = [*SCENES, *DEVICES, '[a](javascript:x)', '`<b>`', '# a', '1. a', '- a', '+ a', '> a', '*a*', '_a_',
       '__a__', '~~a~~',
       'a\nb', '\\', '\\|', '|', '&lt;b&gt;', 'http://a.b', 'www.a.b', 'a@b.c', '<!-- a', '<a',
       '$$a$$', '\\$', '***', '===',
       '---', 'https://a.b/c', '<https://a.b>', '[^1]', '- [ ] a', ': a', '&#60;b&#62;', '| a | b |', '1e3',
       '010', 'None']


@pytest.mark.parametrize('name', ODD)
def test_markdown(name):
    "As a sentence and as a cell the text is what it was, and there is nothing but the text"
    class Text(HTMLParser):
        tags, words = (), ''
        def handle_starttag(self, tag, attributes): self.tags += (tag,)
        def handle_data(self, text): self.words += text

    shown = ' '.join(name.splitlines())
    sentence = Text()
    sentence.feed(page_of(plain(name)))
    assert (set(sentence.tags) - {'p'}, sentence.words.strip()) == (set(), shown)
    frame = pd.DataFrame({name: [name, 'x']}, index=pd.Index([name, 'y'], name=name))
    for text in (markdown_table(frame), to_markdown(frame, name)):
        table = Text()
        table.feed(page_of(text))
        assert set(table.tags) <= {'table', 'thead', 'tbody', 'tr', 'th', 'td'}
        assert table.tags.count('td') + table.tags.count('th') == 6
        assert table.words.count(shown) >= 4


@pytest.mark.parametrize('name', ODD)
def test_figure(name):
    "It can be drawn, and says the name"
    labels = dict(filename=['a', 'b'], scene_label=[name, 'z'], device='a', city='c')
    fig = plot_confusion(pd.DataFrame({**labels, name: [1., 0], 'z': [0, 1.]}), [name, 'z'])
    fig.axes[0].set_title(name)
    literal(fig).canvas.draw()


CELLS = [*ODD, '=1+1', '+1', '-1', '-1.5e3', '+a', '-a', '@SUM(A1)', '\t=1', '\r=1', "'=1", "''=1", "'",
         "'a", '', '＝1',
         '=HYPERLINK("http://a")', '-', '+', "'-5"]


@pytest.mark.parametrize('name', CELLS)
def test_sheet(name, tmp_path):
    "Nothing begins with what a spreadsheet runs but numbers, and the text comes back"
    frame = pd.DataFrame({'n': [1.5], name or 'x': [name]}, index=pd.Index([name], name='file'))
    written = sheet(frame)
    for cell in (written.iloc[0, 1], written.index[0], written.columns[1]):
        assert cell[:1] not in tuple('=+-@\t\r＝') or cell.lstrip('+-').replace('.', '').replace('e', '').isdigit()
    assert [from_sheet(cell) for cell in (written.iloc[0, 1], written.index[0])] == [name, name]
    assert written.n.tolist() == [1.5] and written.n.dtype == float


def test_run_writes_them(tmp_path):
    "The tables and sentences of any run notebook"
    run = Run(tmp_path, 'train', {})
    frame = pd.DataFrame({'=a': ['=b', None], 'n': [1, 2]}, index=['a|b', '<u>'])
    run.table(frame, 'table')
    run.csv(frame, 'plain')
    assert (tmp_path/'table.csv').read_text().splitlines() == [",'=a,n", "a|b,'=b,1", '<u>,,2']
    assert (tmp_path/'plain.csv').read_text().splitlines()[1] == "'=b,1"
    assert run.finish({}, '<img src=x onerror=a>', '# a').startswith(r'**&lt;img src=x onerror=a&gt;**')


def test_sentences_of_a_report():
    data = dict(corpus='<img src=x onerror=a>')
    assert not Acting(page_of(list_summary({'`<b onclick=a>': [dict(data=data)]}))).found
    assert not Acting(page_of(pair_caption(['<b onclick=a>', 'a'], ['<i onclick=a>']))).found


def test_the_page_of_microphones():
    names = dict(model='<b onclick=a>', device=['as recorded', '<b onclick=b>'], scene=SCENES[0])
    compared = pd.DataFrame(dict(names, p=.5, holds=True))
    assert not Acting(style_comparison(compared).to_html()).found


def test_answers_as_csv():
    text = _csv_text(pd.DataFrame(dict(filename=['=a.wav'], p=[-.5])))
    assert text.splitlines() == ['filename,p', "'=a.wav,-0.500000"]
