"""The site builds offline and whole, and every command of the tutorials runs as it is printed."""
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import soundfile as sf

from asc.core import InputError
from asc.site import build_site, definition, targets
from conftest import ROOT

PAGES = sorted((ROOT/'nbs/tutorials').glob('*.md'))
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.S | re.M)
ELSEWHERE = {"""python -c "import asc; asc.download_corpus('tau2022')\"""": 'test_corpus.py::test_download_corpus'}     # what needs a network, and the test of its code
DONE = {'1': ['runs/first/model.safetensors', 'runs/baseline/cells'], '2': ['my-corpus/test.csv', 'runs/mine/metrics.json']}


def blocks(page, *kinds): return [body for kind, body in BLOCK.findall(page.read_text(encoding='utf-8')) if kind in kinds]


# the tutorials

@pytest.fixture(scope='module')
def desk(synthetic, tmp_path_factory):
    "A copy of the project where a reader types, with a thinned synthetic corpus for TAU and a few files for a corpus of one's own"
    desk = tmp_path_factory.mktemp('desk')
    for name in ('asc', 'nbs'): shutil.copytree(ROOT/name, desk/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    shutil.copy(ROOT/'settings.ini', desk)
    tau = desk/'data/TAU-urban-acoustic-scenes-2022-mobile-development'
    shutil.copytree(synthetic, tau)
    for lists in [*tau.glob('test.csv'), *tau.glob('evaluation_setup/*.csv')]:                # one snippet a recording is enough of a test
        rows = pd.read_csv(lists, sep='\t')
        rows[~rows.filename.str.contains(r'-[1-9]-(?:[bc]|s\d)\.wav$')].to_csv(lists, sep='\t', index=False)
    return desk


def script(page, values):
    "What a reader of the page types, with other values for what is theirs to set"
    text = ''.join(blocks(page, 'sh'))
    for line in ELSEWHERE: text = text.replace(f'{line}\n', '')
    return re.sub(r'^([A-Z_]+)=(?!\$).*$', lambda m: f'{m[1]}={values[m[1]]}', text, flags=re.M)


def walk(desk, page):
    "Type a page, once"
    for body in blocks(page, 'python', 'yaml'): (desk/re.match(r'# (\S+)', body)[1]).write_text(body, encoding='utf-8')
    values = dict(TAU='data/TAU-urban-acoustic-scenes-2022-mobile-development', EPOCHS='1', QAT_EPOCHS='1', SPLITS='5', SEEDS='0',
                  MINE='my-corpus', SOUNDS='recordings', TEACHERS='[runs/first]')
    env = dict(os.environ, OMP_NUM_THREADS='1', PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return subprocess.run(['bash', '-euxo', 'pipefail', '-c', script(page, values)], cwd=desk, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_tutorial(page, desk):
    r = walk(desk, page)
    assert r.returncode == 0, r.stderr[-3000:]
