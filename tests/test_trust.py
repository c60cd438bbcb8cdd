"""Training trusts nothing that check_corpus would find: each finding is refused, and accepted by its name."""
import numpy as np
import pytest
import soundfile as sf

from asc.core import InputError
from asc.data.accept import ACCEPTABLE, accepted_names
from asc.data.check import tables_of
from asc.data.checking import check_corpus
from asc.data.corpus import load_corpus
from asc.data.division import divide
from asc.data.findings import corpus_remarks
from asc.data.heard import heard
from asc.data.layouts import META
from asc.data.store import pack
from asc.experiment.recipe import read_training_data
from asc.train.options import TrainingOptions

RATE = 800
NAMES = [f'audio/{scene}-oulu-{place}-{9*place}-{device}.wav'
         for place, scene in enumerate(('bus', 'park', 'bus', 'park', 'bus', 'park')) for device in 'ab']


def rows_of(names):
    "Rows of meta.csv as the names say them"
    parts = [name.removeprefix('audio/').removesuffix('.wav').split('-') for name in names]
    return [[name, part[0], f'{part[1]}-{part[2]}', part[-1]] for name, part in zip(names, parts)]


def write(path, rows, head):
    path.write_text('\n'.join('\t'.join(row) for row in [head, *rows]) + '\n', encoding='utf-8')


def corpus(folder, rows=None, head=META, sounds=None, ):
    "A corpus of six places and two devices, four places to train on; `sounds` are samples by name"
    rows = rows or rows_of(NAMES)
    rng = np.random.default_rng(0)
    for name, *_ in rows:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        x = rng.uniform(-.5, .5, RATE)
        sf.write(folder/name, (sounds or {}).get(name, x), RATE)
    write(folder/'meta.csv', rows, head)
    for name, part in (('split100', rows[:8]), ('test', rows[8:])):
        write(folder/f'{name}.csv', [row[:2] for row in part], ['filename', 'scene_label'])
    return folder


def train(folder, **options):
    "The data of a training, as every door reads it"
    return read_training_data(TrainingOptions(data_dir=str(folder), valid=0., **options))


def with_row(k, **cells):
    "The rows of the corpus, some cells of one of them changed"
    rows = rows_of(NAMES)
    for column, value in cells.items(): rows[k][int(column[1:])] = value
    return rows


def copied(folder):
    "A corpus whose last test clip is a copy of the first training clip"
    tone = np.sin(np.arange(RATE)/3)
    return corpus(folder, sounds={NAMES[0]: tone, NAMES[-1]: tone})


DOUBLE = [[*row, 'x'] for row in rows_of(NAMES)]
FAULTS = {
    'a scene that is not that of the name': ('scene', lambda d: corpus(d, with_row(0, c1='park'))),
    'a place that is not that of the name': ('identifier', lambda d: corpus(d, with_row(0, c2='oulu-7'))),
    'a device that is not that of the name': ('device', lambda d: corpus(d, with_row(0, c3='b'))),
    'a scene in two cases': ('labels', lambda d: corpus(d, [[n, s if k else 'Bus', *r]
                                                           for k, (n, s, *r) in enumerate(own_names())])),
    'a place with a sign of no width': ('labels', lambda d: corpus(d, [[n, s, p + '\u200b'*(k == 9), r]
                                                                      for k, (n, s, p, r) in enumerate(own_names())])),
    'a device in Cyrillic': ('labels', lambda d: corpus(d, [[*r[:3], '\u0430' if k == 2 else r[3]]
                                                           for k, r in enumerate(own_names())])),
    'a file name in two cases': ('names', lambda d: corpus(
        d, [*own_names(), ['audio/TAKE 3.wav', 'park', 'x-9', 'a']])),
    'a file name with a byte order mark': ('names', lambda d: corpus(
        d, [*own_names(), ['audio/\ufefftake 3.wav', 'park', 'x-9', 'a']])),
    'a file name in two Unicode forms': ('names', lambda d: corpus(d, [
        ['audio/cafe\u0301.wav', *rows_of(NAMES)[0][1:]], *own_names()[1:],
        ['audio/caf\u00e9.wav', 'bus', 'x-8', 'a']])),
    'a name with a hard blank': ('names', lambda d: corpus(
        d, [*own_names(), ['audio/take\u00a03.wav', 'park', 'x-9', 'a']])),
    'two files for one piece': ('pieces', lambda d: corpus(
        d, [*rows_of(NAMES), [NAMES[-1][:-3] + 'Wav', 'park', 'oulu-5', 'b']])),
    'a column twice': ('columns', lambda d: corpus(d, DOUBLE, [*META, 'Scene_Label '])),
    'a column with a sign of no width': ('columns', lambda d: corpus(d, DOUBLE, [*META, 'scene_label\u200b'])),
    'a note twice': ('columns', lambda d: corpus(d, [[*r, 'y'] for r in DOUBLE], [*META, 'note', 'note'])),
    'two columns for the scene': ('columns', lambda d: corpus(d, [[*r, ('bus', 'park')[k//3 % 2]] for k, r in
                                                                 enumerate(rows_of(NAMES))], [*META, 'scene'])),
    'one sound in two lists': ('audio', copied),
}


def own_names():
    "Rows whose file names tell nothing"
    return [[f'audio/take {k}.wav', *row[1:]] for k, row in enumerate(rows_of(NAMES))]


@pytest.mark.parametrize('name', FAULTS)
def test_refused_unless_accepted(name, damage, tmp_path, capsys):
    "By its name, or by `all`; then it is said, and stands in the facts of the data. Another name does not help"
    accept, make = FAULTS[name]
    folder = make(tmp_path/'c')
    damage('finding', lambda: train(folder), [f'accept={accept}.'])
    other = next(other for other in ACCEPTABLE if other != accept)
    with pytest.raises(InputError, match=f'accept={accept}'): train(folder, accept=other)
    wanted = 'names,pieces' if accept == 'pieces' else accept
    data = train(folder, accept=wanted)
    assert any(said.endswith('Accepted as known.') for said in data.facts['findings'])
    assert 'Accepted as known.' in capsys.readouterr().out
    assert train(folder, accept='all').facts['findings'] == data.facts['findings']


def test_nothing_is_found_where_nothing_is_wrong(tmp_path, capsys):
    data = train(corpus(tmp_path/'c'))
    assert 'findings' not in data.facts and 'accept=' not in capsys.readouterr().out


@pytest.mark.parametrize('name', [name for name in FAULTS if FAULTS[name][0] != 'audio'])
def test_check_finds_it_too(name, tmp_path):
    accept, make = FAULTS[name]
    found = check_corpus(make(tmp_path/'c'), progress=False)
    assert accept in set(found.accept[found.severity == 'error'])


def test_deep_check_finds_one_sound_in_two_lists(tmp_path):
    folder = copied(tmp_path/'c')
    assert check_corpus(folder, progress=False).empty
    found = check_corpus(folder, deep=True, progress=False)
    assert (found.accept[0], found['count'][0], found.example[0]) == ('audio', 1, f'{NAMES[0]} and {NAMES[-1]}')


def test_deep_check_looks_at_the_lists_that_are_ours(tmp_path):
    "Two copies under two labels, and on two sides of our cut; the same refuses a training"
    folder = corpus(tmp_path/'c')
    for name in ('split100.csv', 'test.csv'): (folder/name).unlink()
    lines = ['title: ours', 'licence: CC0', 'reader: tau', 'lists: {by: location, test: 0.3}']
    (folder/'corpus.yaml').write_text('\n'.join(lines), encoding='utf-8')
    c = load_corpus(folder)
    trained, tested = divide(c).train.filename, divide(c).test.filename
    other = next(name for name in tested if name[:9] != trained[0][:9])
    (folder/other).write_bytes((folder/trained[0]).read_bytes())
    assert check_corpus(folder, progress=False).empty
    found = check_corpus(folder, deep=True, progress=False)
    assert [*found.what] == ['train and test share sounds under two names', 'one sound under two labels']
    assert {*found.accept} == {'audio'}
    with pytest.raises(InputError, match='share sounds under two names.*accept=audio'): train(folder)


def test_one_sound_under_two_labels_in_one_list(tmp_path):
    tone = np.sin(np.arange(RATE)/3)
    said = train(corpus(tmp_path/'c', sounds={NAMES[0]: tone, NAMES[2]: tone})).facts['findings']
    assert any('one sound under two labels' in sentence for sentence in said)


def test_promises_that_no_clip_keeps(tmp_path):
    folder = corpus(tmp_path/'c')
    lines = ['title: none', 'licence: CC0', 'reader: table', 'table: meta.csv', 'group: user', 'audio: .',
             'columns: {filename: filename, scene: scene_label}', 'lists: {by: user}', 'sound: {mix: 3, rate: 800}']
    (folder/'corpus.yaml').write_text('\n'.join(lines), encoding='utf-8')
    what = set(check_corpus(folder, progress=False).what)
    assert {'group is user, and no clip has one', 'lists are to be cut by user, and no clip has one',
            'mono sound files, where channel 3 is to be taken'} <= what


def test_silence_and_copies_in_one_list_are_no_findings(tmp_path):
    "Clips of one value are alike everywhere; a copy beside its source flatters nothing"
    tone, silence, step = np.sin(np.arange(RATE)/3), np.zeros(RATE), np.full(RATE, .25)
    sounds = {NAMES[0]: tone, NAMES[1]: tone, NAMES[2]: silence, NAMES[-1]: silence, NAMES[3]: step, NAMES[-2]: step}
    assert 'findings' not in train(corpus(tmp_path/'c', sounds=sounds)).facts


@pytest.mark.parametrize('subtype,file', [('PCM_24', 'WAV'), ('PCM_16', 'FLAC'), ('FLOAT', 'WAV')])
def test_one_sound_in_another_format(subtype, file, damage, tmp_path):
    "What is compared are samples, not bytes of files"
    folder = copied(tmp_path/'c')
    x, rate = sf.read(folder/NAMES[0])
    sf.write(folder/NAMES[-1], x, rate, subtype, format=file)
    damage('finding', lambda: train(folder), ['accept=audio', NAMES[0], NAMES[-1]])


def test_store_of_an_earlier_version(tmp_path):
    "Its digests are made of its samples, kept, and made anew where the store is another"
    c = load_corpus(copied(tmp_path/'c'))
    store = pack(c, tmp_path/'s', progress=False)
    now = heard(store, c.meta)
    store.rows = store.rows.drop(columns='digest')
    assert heard(store, c.meta).equals(now) and (store.folder/'digests.txt').is_file()
    assert heard(store, c.meta).equals(now)
    kept = (store.folder/'digests.txt').read_text(encoding='utf-8')
    (store.folder/'digests.txt').write_text(kept.replace(store.content, 'another'), encoding='utf-8')
    assert heard(store, c.meta).equals(now)


def test_joined_clips_are_compared_by_their_recordings(tmp_path):
    "A joined clip is not in the store; its snippets are"
    names = [f'audio/{s}-oulu-{p}-{p}-{k}-a.wav' for p, s in enumerate(('bus', 'park')*3) for k in range(2)]
    rows = [[name, name[6:].split('-')[0], f"oulu-{name.split('-')[2]}", 'a'] for name in names]
    tone = np.sin(np.arange(RATE)/3)
    folder = corpus(tmp_path/'c', rows, sounds={names[0]: tone, names[-1]: tone})
    with pytest.raises(InputError, match='accept=audio'): train(folder, join=2)


def test_names_outside_the_grammar_begin_with_the_scene(damage, tmp_path):
    "Where most agree with the table; a corpus whose names begin with something else has nothing to contradict"
    rows = [[f'audio/{row[1]} {k}.wav', *row[1:]] for k, row in enumerate(rows_of(NAMES))]
    damage('finding', lambda: train(corpus(tmp_path/'c', [['audio/Park_0.wav', *rows[0][1:]], *rows[1:]])),
           ['audio/Park_0.wav: bus', 'accept=scene'])
    strange = [[f"audio/{('park', 'bus')[k % 2]} {k}.wav", *row[1:]] for k, row in enumerate(rows_of(NAMES))]
    train(corpus(tmp_path/'d', strange))


def test_own_list_with_two_columns_of_one_name(damage, tmp_path):
    folder = corpus(tmp_path/'c')
    own = tmp_path/'mine.csv'
    write(own, [[name, 'x', 'y'] for name in NAMES[:8]], ['filename', 'Note', 'note'])
    damage('finding', lambda: train(folder, train_list=str(own)), ['mine.csv', 'accept=columns'])
    assert len(train(folder, train_list=str(own), accept='columns').train) == 8


def test_columns_that_say_the_same_in_other_words(tmp_path):
    "A scene and its number, a place and its district: one follows from the other"
    numbers = dict(bus='0', park='1')
    rows = [[*row, numbers[row[1]], row[2][:4]] for row in rows_of(NAMES)]
    assert 'findings' not in train(corpus(tmp_path/'c', rows, [*META, 'label', 'place'])).facts


@pytest.mark.parametrize('accept', ['scenes', 'audio;scene', 'everything', 'scene,,devise'])
def test_no_such_finding(accept, damage, tmp_path):
    damage('parameter', lambda: accepted_names(accept), ['accept'])


def test_accepted_words(): assert accepted_names(' scene, audio,') == {'scene', 'audio'} and not accepted_names('')


@pytest.mark.parametrize('data', ['scene against name', 'all'])
def test_every_error_is_told_at_once(data, tmp_path):
    "A sentence for each, and each with its own name"
    rows = with_row(0, c1='park', c3='b')
    accepted = '' if data == 'all' else 'scene'
    with pytest.raises(InputError) as refused: train(corpus(tmp_path/'c', rows), accept=accepted)
    assert str(refused.value).count('\n') == (1 if data == 'all' else 0)


def test_tau_itself_is_trusted(shared, tmp_path):
    "Not a word about the 23,035 recordings; the 230,350 snippets take ten times as long, a second"
    (tmp_path/'meta.csv').write_bytes((shared/'data/tau-lists/tau2020_total.csv').read_bytes())
    tau = load_corpus(tmp_path)
    assert tau.edition == '2020' and corpus_remarks(tau, tables_of(tau)) == []


@pytest.mark.parametrize('column,words', [(1, dict(bus='vehicle', park='park')), (1, dict(bus='b', park='p')),
                                          (3, dict(a='phone', b='b')),
                                          (2, {f'oulu-{k}': f'street {k}' for k in range(6)})])
def test_renamed_throughout_is_no_mistake(column, words, tmp_path):
    "A label that is another one wherever it occurs was meant; a remark says so"
    rows = rows_of(NAMES)
    for row in rows: row[column] = words[row[column]]
    said, = train(corpus(tmp_path/'c', rows)).facts['findings']
    assert 'has other words than the file names' in said and 'Accepted' not in said


def test_labels_in_turn_are_no_new_words(damage, tmp_path):
    "Scenes that changed places contradict the names, though no two agree"
    rows = rows_of(NAMES)
    for row in rows: row[1] = dict(bus='park', park='bus')[row[1]]
    damage('finding', lambda: train(corpus(tmp_path/'c', rows)), ['accept=scene'])


def test_names_with_another_ending_are_compared_too(damage, tmp_path):
    names = [name.replace('.wav', '.flac') for name in NAMES]
    rows = [[name, *row[1:]] for name, row in zip(names, rows_of(NAMES))]
    rows[0][3] = 'b'
    damage('finding', lambda: train(corpus(tmp_path/'c', rows)), [names[0], 'accept=device'])


def test_a_further_corpus_is_not_trusted_either(damage, tmp_path):
    folder, other = corpus(tmp_path/'c'), corpus(tmp_path/'d', with_row(0, c1='park'))
    damage('finding', lambda: train(folder, extra=[dict(data=str(other))]), ['d: scene in meta.csv', 'accept=scene'])
