"""`asc data import`: every way a stranger's folder can be unclear, what is said of it, and a usable description."""
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from asc.cli import main
from asc.data.corpus import load_corpus
from asc.data.importing import import_corpus
from asc.data.layouts import META
from asc.data.splits import read_split, read_test
from asc.data.unclear import UNCLEAR

RATE = 800


def put(folder, *names, seconds=.1, rate=RATE, channels=1):
    "Sounds of noise, each of its own"
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = sum(map(ord, name))
        sf.write(path, np.random.default_rng(seed).uniform(-.1, .1, (round(rate*seconds), channels)), rate)


def write(folder, name, *lines, encoding='utf-8'):
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes('\n'.join(lines).encode(encoding))


def clips(folder, below='wavs/', n=12, **sound): put(folder, *(f'{below}c{k:02}.wav' for k in range(n)), **sound)


def rows(*more, n=12, name='c{:02}.wav', head='file,label,place', sep=','):
    "Rows of a table: two scenes, six places; `more` are functions of the number, for further columns"
    table = [[name.format(k), ('rain', 'wind')[k % 2], f'p{k//2}', *(str(column(k)) for column in more)]
             for k in range(n)]
    return [sep.join(head.split(',')), *(sep.join(row) for row in table)]


def table(folder, *more, head='file,label,place', **words):
    clips(folder)
    write(folder, 'clips.csv', *rows(*more, head=head, **words))


def kaldi(folder, *lists):
    clips(folder, 'w/', 4)
    write(folder, 'wav.scp', *(f'u{k} w/c{k:02}.wav' for k in range(4)))
    if 'text' in lists: write(folder, 'text', *(f"u{k} {('rain', 'wind')[k % 2]}" for k in range(4)))
    if 'segments' in lists: write(folder, 'segments', *(f'u{k} u{k} 0 0.05' for k in range(4)))


def classes(folder, *names, n=4, **sound): put(folder, *(f'{c}/{c}_{i}x.wav' for c in names for i in range(n)), **sound)


def two_file_columns(folder):
    table(folder, lambda k: f'c{(k + 1) % 12:02}.wav', head='file,label,place,original')


def two_scene_columns(folder): table(folder, lambda k: ('wet', 'dry')[k//3 % 2], head='file,label,place,category')


def names_of_classes(folder):
    clips(folder)
    write(folder, 'clips.csv', 'file,target,place', *(f'c{k:02}.wav,{k % 2},p{k//2}' for k in range(12)))


def named_numbers(folder):
    names_of_classes(folder)
    write(folder, 'classes.txt', 'rain', 'wind')


def several_rows(folder, head, *more):
    clips(folder, n=3)
    write(folder, 'clips.csv', head, *(','.join([f'c{k//2:02}.wav', ('rain', 'wind')[k % 2],
                                                 *(str(column(k)) for column in more)]) for k in range(6)))


def overlapping(folder):
    clips(folder)
    write(folder, 'train.csv', *rows(n=9))
    write(folder, 'test.csv', rows()[0], *rows()[9:])
    write(folder, 'all.csv', *rows())


def with_folders(folder, wrong=()):
    put(folder, *(f"wavs/{('rain', 'wind')[k % 2 ^ (k in wrong)]}/c{k:02}.wav" for k in range(12)))
    write(folder, 'clips.csv', *rows())


def tau_without_lists(folder):
    names = [f'audio/{s}-oulu-{p}-{p}-a.wav' for s, places in (('rain', (1, 2)), ('wind', (3, 4))) for p in places]
    put(folder, *names)
    rows = ('\t'.join([n, n[6:10], '-'.join(n.split('-')[1:3]), 'a']) for n in names)
    write(folder, 'meta.csv', '\t'.join(META), *rows)


def zipped(folder, name):
    with zipfile.ZipFile(Path(folder, name), 'w') as archive: archive.writestr('x.wav', b'')


def both(*makers):
    def make(folder):
        for maker in makers: maker(folder)
    return make


# topic -> how a folder comes to be so, what of the sentence must be there, and perhaps what a person chooses
WAYS = {
    'file column': (two_file_columns, '--file original'),
    'scene column': (two_scene_columns, '--scene category'),
    'no scene column': (lambda d: (put(d, *(f'w/{s}/{s[0]}{k}.wav' for s in ('rain', 'wind') for k in range(3))), write(
        d, 'files.csv', 'file,mood', *(f'{s[0]}{k}.wav,m{s}{k}' for s in ('rain', 'wind') for k in range(3)))),
        '--scene'),
    'no labels in the table': (lambda d: (
        clips(d), write(d, 'clips.csv', 'file', *(f'c{k:02}.wav' for k in range(12)))),
                               'an evaluation set'),
    'numbers': (named_numbers, 'classes.txt'),
    'numbers without names': (names_of_classes, '(0, 1)'),
    'group column': (table, 'place is taken'),
    'words of lists': (lambda d: table(d, lambda k: 'ab'[k % 2], head='file,label,place,part'), '(a, b)',
                       dict(list='part')),
    'start and end': (lambda d: several_rows(d, 'file,label,start,end', lambda k: k % 2*.05, lambda k: k % 2*.05 + .05),
                      'columns start and end'),
    'start and end elsewhere': (lambda d: table(d, lambda k: k, lambda k: k + 4, head='file,label,place,start,end'),
                                '--start'),
    'several tables': (both(table, lambda d: write(d, 'other.csv', *rows())), 'other.csv'),
    'no header': (lambda d: (clips(d), write(d, 'clips.csv', *rows()[1:])), 'clips.csv'),
    'delimiter': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: write(
        d, 'notes.csv', 'file|mood', *(f'rain_{k}x.wav|good' for k in range(4)))), 'parted by bars'),
    'ragged rows': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: write(
        d, 'notes.csv', 'file,mood', *(f'rain_{k}x.wav,good, or not' for k in range(4)))), 'notes.csv'),
    'two delimiters': (lambda d: table(
        d, lambda k: f'a;{k}', lambda k: 'b', head='file,label,place,note;x,more'), 'tabs'),
    'text of a table': (both(
        table, lambda d: write(d, 'old.csv', 'file,café', 'c00.wav,ü', encoding='latin-1')), 'old.csv'),
    'overlap': (overlapping, 'wavs/c08.wav'),
    'labels without files': (both(table, lambda d: Path(d, 'wavs/c03.wav').unlink()), '1 of 12 rows'),
    'files without labels': (both(table, lambda d: put(d, 'wavs/more.wav')), 'wavs/more.wav'),
    'rows without labels': (lambda d: (clips(d), write(d, 'clips.csv', *rows()[:-2], 'c10.wav,,p5', 'c11.wav,,p5')),
                            '2 of 12 rows have no label'),
    'spelling of names': (both(table, lambda d: Path(d, 'wavs/c03.wav').rename(Path(d, 'wavs/C03.WAV'))), 'c03.wav'),
    'rows for one file': (lambda d: several_rows(d, 'file,label'), '(3, such as'),
    'paths': (lambda d: (clips(d), write(d, 'clips.csv', *rows(name='/old/me/x/c{:02}.wav'))), "'/old/me/x/'"),
    'separators': (lambda d: (clips(d), write(d, 'clips.csv', *rows(name='wavs\\c{:02}.wav'))), 'Windows'),
    'endings': (lambda d: (clips(d), write(d, 'clips.csv', *rows(name='c{:02}'))), '.wav is added'),
    'other names': (lambda d: (clips(d), put(d, 'wavs/x.flac'), write(d, 'clips.csv', *rows(name='c{:02}'),
                                                                     'x,rain,p1')), '(1)'),
    'disagreement': (lambda d: with_folders(d, (4,)), 'wavs/wind/c04.wav'),
    'depth': (lambda d: put(
        d, *(f'{s}/day{k % 2 if k else ""}/x{k}{s}.wav' for s in ('rain', 'wind') for k in range(4)),
                            'rain/y.wav'), 'last folder'),
    'same names': (lambda d: put(d, *(f'{s}/{k}.wav' for s in ('rain', 'wind') for k in range(4))), '(4, such as'),
    'label in names': (lambda d: put(
        d, *(f'{s}{k}.wav' for s in ('rain', 'wind') for k in range(4))), 'rain0.wav: rain'),
    'no labels': (lambda d: put(d, *(f'{k}.wav' for k in range(4))), 'bring a table'),
    'no labels beside wav.scp': (kaldi, 'utt2label'),
    'segments': (lambda d: kaldi(d, 'text', 'segments'), 'each of its lines'),
    'spelling of classes': (lambda d: classes(d, 'rain', 'Rain', 'wind', n=5), 'is read as'),
    'one class': (lambda d: classes(d, 'rain'), 'rain'),
    'group in names': (lambda d: put(d, *(f'{s}/{s}_user{k//2}_{k}.wav' for s in ('rain', 'wind') for k in range(6))),
                       'tell a user'),
    'no group': (lambda d: classes(d, 'rain', 'wind'), '--group'),
    'no split': (lambda d: classes(d, 'rain', 'wind'), 'ours'),
    'two rates': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: put(d, 'wind/z.wav', rate=1600)), '800 Hz'),
    'lengths': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: put(d, 'wind/z.wav', seconds=.25)), '0.1 s (8)'),
    'lengths of rows': (lambda d: several_rows(d, 'file,label,start,end', lambda k: k*.001,
                                               lambda k: k*.001 + (.05 if k else .04)), 'of 0.05 s are cut'),
    'long files': (lambda d: classes(d, 'rain', 'wind', n=2, seconds=70, rate=400), '10 s'),
    'channels': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: put(d, 'wind/z.wav', channels=2)), 'mean'),
    'broken files': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: Path(d, 'wind/z.wav').write_bytes(b'RIFF')),
                     'wind/z.wav'),
    'several labels': (lambda d: (clips(d), write(d, 'clips.csv', 'file,label,place', *(
        f'c{k:02}.wav,"{("rain,wind", "wind")[k % 2]}",p{k//2}' for k in range(12)))), "'rain,wind'"),
    'columns of one name': (lambda d: table(d, lambda k: k, lambda k: k, head='file,label,place,note,Note '), "'note'"),
    'texts beside sounds': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: write(d, 'rain/rain_0x.txt', 'rain')),
                            'rain/rain_0x.txt'),
    'other tables': (both(
        lambda d: classes(d, 'rain', 'wind'), lambda d: Path(d, 'labels.xlsx').touch()), 'labels.xlsx'),
    'archives': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: zipped(d, 'more.zip')), 'more.zip'),
    'other formats': (both(
        lambda d: classes(d, 'rain', 'wind'), lambda d: Path(d, 'wind/z.m4a').touch()), 'wind/z.m4a'),
    'hidden files': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: Path(d, 'wind/._z.wav').touch()), '._z.wav'),
    'other files': (both(lambda d: classes(d, 'rain', 'wind'), lambda d: Path(d, 'LICENSE').touch()), 'LICENSE'),
}
CANNOT_BE_READ = 'labels without files', 'spelling of names', 'rows for one file', 'other names'


def test_every_way_has_its_test(): assert set(WAYS) == set(UNCLEAR)


@pytest.mark.parametrize('topic', WAYS)
def test_unclear(topic, tmp_path):
    "It is said in one sentence, with what to do; and a description is written that can be read and split"
    make, words, *chosen = WAYS[topic]
    make(tmp_path/'x')
    made = import_corpus(tmp_path/'x', tmp_path/'x.yaml', **dict(*chosen))
    said, = [doubt.sentence for doubt in made.doubts if doubt.topic == topic]
    assert words in said and '; ' in said and '{' not in said.replace('{number: name}', '')
    assert f'# - {topic}: ' in made.path.read_text(encoding='utf-8')
    if topic in CANNOT_BE_READ: return
    corpus = load_corpus(made.path)
    assert len(corpus.meta) and all((corpus.dir/name).is_file() for name in corpus.meta.file)
    if corpus.kind == 'development' and topic not in ('one class', 'depth', 'no scene column'):
        train, test = read_split(corpus, 100), read_test(corpus)
        assert len(train) and len(test) and not set(train.filename) & set(test.filename)


# ---------------------------------------------------------------- what a person chooses, and what is left over

@pytest.mark.parametrize('chosen,topic,column', [
    (dict(scene='category'), 'scene column', ('scene', 'category')), (dict(file='original'), 'file column',
                                                                     ('filename', 'original')),
    (dict(group='label'), 'group column', ('location', 'label'))])
def test_an_option_decides(chosen, topic, column, tmp_path):
    "What was chosen is no doubt any more"
    {'scene column': two_scene_columns, 'file column': two_file_columns, 'group column': table}[topic](tmp_path/'x')
    made = import_corpus(tmp_path/'x', tmp_path/'x.yaml', **chosen)
    assert topic not in {doubt.topic for doubt in made.doubts} and made.about['columns'][column[0]] == column[1]


def test_lists_in_tables_of_their_own(tmp_path):
    "train.csv and test.csv with labels are the lists"
    clips(tmp_path/'x')
    write(tmp_path/'x', 'train.csv', *rows(n=8))
    write(tmp_path/'x', 'test.csv', rows()[0], *rows()[9:])
    corpus = load_corpus(import_corpus(tmp_path/'x', tmp_path/'x.yaml').path)
    assert [len(read_split(corpus, 100)), len(read_test(corpus))] == [8, 4]


def test_official_lists_in_a_column(tmp_path):
    table(tmp_path/'x', lambda k: 'Train' if k < 8 else 'Test', head='file,label,place,split')
    corpus = load_corpus(import_corpus(tmp_path/'x', tmp_path/'x.yaml').path)
    assert [len(read_split(corpus, 100)), len(read_test(corpus))] == [8, 4]


def test_development_and_evaluation_are_lists(tmp_path):
    "In a column of lists they are what is trained on and what is tested"
    table(tmp_path/'x', lambda k: 'development' if k < 8 else 'evaluation', head='file,label,place,part')
    corpus = load_corpus(import_corpus(tmp_path/'x', tmp_path/'x.yaml', list='part').path)
    assert [len(read_split(corpus, 100)), len(read_test(corpus))] == [8, 4]


def test_rows_are_counted_and_tell_the_length(tmp_path):
    "Not the files that they are parts of"
    put(tmp_path/'x', 'a.wav', seconds=4)
    put(tmp_path/'x', 'b.wav', seconds=3)
    write(tmp_path/'x', 't.csv', 'file,label,start,end', *(f'{"ab"[k//4]}.wav,{"xyz"[k % 3]},{k % 4*.5},{k % 4*.5 + .5}'
                                                           for k in range(8)))
    made = import_corpus(tmp_path/'x', tmp_path/'x.yaml')
    assert '3 classes: x 3, y 3, z 2.' in made.counts and 'sound' not in made.about
    assert set(load_corpus(made.path).meta.length) == {.5}


@pytest.mark.parametrize('name', ['{fold}-{source}-A-16.wav', '{source}-3-{fold}-2.wav',
                                  'rain-lyon-{source}-1-{fold}-a.wav'])
def test_sources_of_known_names_in_folders_of_classes(name, tmp_path):
    "Names of ESC-50, UrbanSound8K and TAU tell the group, whoever put them into folders"
    put(tmp_path/'x', *(f'{scene}/{name.format(source=170 + k//2, fold=1 + k % 2)}' for scene in ('rain', 'wind')
                        for k in range(6)))
    made = import_corpus(tmp_path/'x', tmp_path/'x.yaml')
    assert made.about['group'] in ('source', 'place') and load_corpus(made.path).meta.location.nunique() == 3


@pytest.mark.parametrize('wrong,words', [
    (lambda d: d.mkdir(), 'holds no sound file'), (lambda d: write(d, 'notes.txt', 'hello'), 'holds no sound file'),
    (lambda d: (d.mkdir(), zipped(d, 'x.zip')), 'unpack it first'), (lambda d: write(d, 'x.m4a', ''), 'convert them')])
def test_nothing_can_be_written(wrong, words, tmp_path, capsys):
    "Then the command ends with 2, and there is no file"
    wrong(tmp_path/'x')
    with pytest.raises(SystemExit) as end: main(['data', 'import', str(tmp_path/'x'), '--out', str(tmp_path/'x.yaml')])
    assert end.value.code == 2 and words in capsys.readouterr().err and not (tmp_path/'x.yaml').exists()


@pytest.mark.parametrize('options,names', [
    (dict(scene='lable'), ['--scene', 'lable', 'label']), (dict(file='name'), ['--file']),
    (dict(file='place'), ['--file place', 'p0', 'such as file']),
    (dict(group='palce'), ['place']),
    (dict(table='clip.csv'), ['clips.csv']), (dict(reader='parquet'), ['--reader parquet']),
    (dict(columns='x'), ['option']),
    (dict(out='x.csv'), ['.yaml']), (dict(start='c', end='d'), ['--start'])])
def test_wrong_option(options, names, damage, tmp_path):
    table(tmp_path/'x')
    damage('parameter', lambda: import_corpus(tmp_path/'x', **dict(dict(out=tmp_path/'x.yaml'), **options)), names)


def test_nothing_is_overwritten(damage, tmp_path):
    table(tmp_path/'x')
    (tmp_path/'x.yaml').write_text('mine')
    damage('file', lambda: import_corpus(tmp_path/'x', tmp_path/'x.yaml'), ['x.yaml is there already'])
    assert (tmp_path/'x.yaml').read_text() == 'mine'


def test_lists_are_folders_and_scenes_begin_the_names(tmp_path):
    names = (f'{part}/{scene}{k}.wav' for part in ('train', 'test') for scene in ('rain', 'wind') for k in range(3))
    put(tmp_path/'x', *names)
    corpus = load_corpus(import_corpus(tmp_path/'x', tmp_path/'x.yaml').path)
    assert corpus.scenes == ['rain', 'wind'] and [len(read_split(corpus, 100)), len(read_test(corpus))] == [6, 6]


@pytest.mark.parametrize('pattern', ['{place}/{scene}/{k}.wav', '{scene}/{place}/{k}.wav'])
def test_folders_of_places_and_scenes(pattern, tmp_path):
    "Whichever is outside: there are more places than scenes"
    put(tmp_path/'x', *(pattern.format(place=f'home {p}', scene=scene, k=f'{p}{k}{scene}') for p in range(6)
                        for scene in ('bath', 'kitchen') for k in range(2)))
    meta = load_corpus(import_corpus(tmp_path/'x', tmp_path/'x.yaml').path).meta
    assert set(meta.scene) == {'bath', 'kitchen'} and meta.location.nunique() == 6


def test_parquet(tmp_path):
    "Columns beside the sounds are guessed as those of a table"
    def sound(k):
        data = io.BytesIO()
        sf.write(data, np.random.default_rng(k).uniform(-.1, .1, 80), RATE, format='WAV')
        return dict(bytes=data.getvalue(), path=f'c{k}.wav')
    (tmp_path/'x').mkdir()
    columns = dict(audio=[sound(k) for k in range(8)], label=['rain', 'wind']*4, user=[f'u{k//2}' for k in range(8)])
    pq.write_table(pa.table(columns), tmp_path/'x/all.parquet')
    made = import_corpus(tmp_path/'x', tmp_path/'x.yaml')
    assert made.about['columns'] == dict(location='user', scene='label')
    corpus = load_corpus(made.path)
    assert corpus.scenes == ['rain', 'wind']
    assert not set(read_split(corpus, 100).location) & set(read_test(corpus).location)


@pytest.mark.parametrize('name', ['no and yes', '[x]: y', '#1', "l'été", '12:30', '0x1', '~', 'null', '007', '1_000'])
def test_words_that_yaml_reads_otherwise(name, tmp_path):
    "Columns and folders of any name come back as they are"
    clips(tmp_path/name)
    write(tmp_path/name, 'clips.csv', *rows(head=f'{name},label,place', sep=';'))
    corpus = load_corpus(import_corpus(tmp_path/name, tmp_path/'x.yaml').path)
    assert corpus.about['columns']['filename'] == name and len(corpus.meta) == 12


def test_real_recordings(shared, tmp_path):
    "Real recordings of ESC-50: known names, numbers for labels; a table with names is made beside copies"
    made = import_corpus(shared/'data/ambience/source', tmp_path/'x.yaml')
    assert made.about['lists'] == 'folds' and made.about['group'] == 'source' and len(set(load_corpus(
        made.path).meta.scene)) == 10
    assert 'numbers without names' in {doubt.topic for doubt in made.doubts}
