"""False alarms and power of the check of a teacher: python tests/power.py honest|faults SEED NUMBER

What nbs/teach/13_power.ipynb reports was measured with it, on files of imaginary teachers, some of them damaged.
"""
import sys

import numpy as np
import pandas as pd

from asc.core import SCENES, InputError
from asc.data.names import recording_and_place
from asc.data.synthetic import _clips, _nested, plan
from asc.teach.alignment import check_alignment

ORDERS = ['list', 'recordings', 'shuffled', 'names', 'device', 'city', 'scene', 'device scene', 'city device']
LISTS = ['shuffled', 'meta', 'nested']


def codes(column):
    return pd.factorize(pd.Series(np.asarray(column)))[0]


def synthetic_list(order, train=12, seed=0):
    "The training clips of a synthetic corpus, in the order of meta.csv, or of its nested lists"
    recordings = [r for r in plan(train, 1, seed) if r.part == 'train']
    if order != 'meta': recordings = _nested(recordings)[100]
    rows = []
    for r in recordings:
        where = dict(scene=r.scene, city=r.city, location=f'{r.city}-{r.location}', device=r.device)
        rows += [dict(where, filename=name, recording=recording_and_place(name)[0]) for name in _clips(r)]
    return pd.DataFrame(rows)


def ordered(rows, order, rng):
    "The rows in one of `ORDERS`"
    if order == 'list': return rows
    if order == 'shuffled': return rows.iloc[rng.permutation(len(rows))].reset_index(drop=True)
    if order == 'names': return rows.sort_values('filename').reset_index(drop=True)
    if order == 'recordings':
        recording = codes(rows.recording)
        place = rng.permutation(recording.max() + 1)
        return rows.iloc[np.argsort(place[recording], kind='stable')].reset_index(drop=True)
    if rng.random() < .5: rows = rows.iloc[rng.permutation(len(rows))]
    return rows.sort_values(order.split(), kind='stable').reset_index(drop=True)


def made_up_list(rng, n, order):
    "About n clips, 1 to 10 of a recording, of up to five cities and six devices"
    snippets = int(rng.choice([1, 2, 4, 5, 10], p=[.1, .15, .3, .2, .25]))
    places = int(rng.integers(2, 5))
    cities, devices = int(rng.integers(1, 6)), int(rng.integers(1, 7))
    recordings = max(n // snippets, 30)
    share = np.ones(10) if rng.random() < .5 else rng.dirichlet(np.full(10, 8))
    rows = []
    for r, s in enumerate(np.sort(rng.choice(10, recordings, p=share / share.sum()))):
        place, city = r // places, r // places % cities
        d = int(rng.integers(devices)) if rng.random() < .5 else 0
        where = dict(recording=f'{r}-{d}', scene=SCENES[s], city=f'c{city}', location=f'c{city}-{place}-{s}')
        rows += [dict(where, device=f'd{d}', filename=f'audio/{SCENES[s]}-c{city}-{place}-{r}-{k}-d{d}.wav')
                 for k in range(snippets)]
    return ordered(pd.DataFrame(rows), order, rng)


def drawn_spread(rng, typical):
    "How far skill differs, and how large the noise is that rows share, by column"
    skill = {name: rng.uniform(0, most) for name, most in
             dict(scene=.5, device=.4, city=.3, location=.4, recording=.5).items()}
    noise = {name: rng.uniform(*ends) for name, ends in
             dict(recording=(.3, 1.5), location=(0, .8), filename=(.3, 1.2)).items()}
    if typical: return dict.fromkeys(skill, .2), dict(recording=.7, location=.4, filename=1.)
    return skill, noise


def skilled(z, own, skill, truth, accuracy):
    "Logits with as much of the own scene as that accuracy needs"
    low, high = 0., 200.
    for _ in range(30):
        middle = (low + high) / 2
        if ((z + middle * skill[:, None] * own).argmax(1) == truth).mean() < accuracy: low = middle
        else: high = middle
    return z + middle * skill[:, None] * own


def imaginary(rng, rows, accuracy, typical=False):
    "Logits and labels: skill by scene, device, city, place and recording, mistakes shared, some scenes confused"
    truth = pd.Categorical(rows.scene, SCENES).codes.astype(int)
    spread, noise = drawn_spread(rng, typical)
    z, skill = np.zeros((len(rows), 10)), np.ones(len(rows))
    for name, size in noise.items():
        code = codes(rows[name])
        z += size * rng.normal(size=(code.max() + 1, 10))[code]
    for name, size in spread.items():
        code = codes(rows[name])
        skill *= np.exp(size * rng.normal(size=code.max() + 1))[code]
    near = rng.dirichlet(np.full(10, .3), size=10)
    np.fill_diagonal(near, 0)
    z += rng.uniform(0, 2) * near[truth]
    z = skilled(z, np.eye(10)[truth], skill, truth, accuracy)
    if not typical: z *= np.exp(rng.uniform(-1, 1))
    return z.astype(np.float16).astype(np.float32), truth


def refusal(rows, logits, truth):
    "What the check says, '' for nothing"
    try:
        check_alignment(logits, truth, SCENES, rows.recording, rows.location, 'teacher', rows.device, rows.city,
                        names=rows.filename)
    except InputError as error:
        return str(error)
    return ''


def honest_file(seed, i):
    "Rows, logits and labels of a file without a fault"
    rng = np.random.default_rng([seed, i])
    accuracy = float(rng.uniform(.2, .99)) if rng.random() < .6 else float(rng.choice([.9, .95, .97, .99]))
    kind = int(rng.integers(12))
    if kind < 9:
        rows = made_up_list(rng, int(rng.integers(300, 1401)), ORDERS[kind])
    else:
        order = ['meta', 'nested', 'shuffled'][kind - 9]
        rows = synthetic_list(order, int(rng.choice([6, 12, 14])), int(rng.integers(50)))
        if order == 'shuffled': rows = ordered(rows, order, rng)
    return rows, *imaginary(rng, rows, accuracy)


def shuffled_block(length):
    def changed(z, rng):
        first = int(rng.integers(len(z) // 4, 3 * len(z) // 4))
        z[first:first + length] = z[first:first + length][rng.permutation(length)]
    return changed


def shifted_half(z, rng):
    half = len(z) // 2
    z[half:] = np.roll(z[half:], 1, 0)


def exchanged_blocks(z, rng):
    a, b = len(z) // 4, 5 * len(z) // 8
    z[a:a + 40], z[b:b + 40] = z[b:b + 40].copy(), z[a:a + 40].copy()


def copied_block(z, rng):
    a, b = len(z) // 4, 5 * len(z) // 8
    z[a:a + 40] = z[b:b + 40]


def exchanged_columns(columns):
    def changed(z, rng):
        first, last = len(z) // 2, len(z) // 2 + len(z) // 4
        z[first:last] = z[first:last][:, columns]
    return changed


FAULTS = {
    'last half by a row': shifted_half, 'ten shuffled': shuffled_block(10), 'twenty shuffled': shuffled_block(20),
    'forty shuffled': shuffled_block(40), 'forty exchanged': exchanged_blocks, 'forty copied': copied_block,
    'ten columns': exchanged_columns([1, 0, 3, 2, 5, 4, 7, 6, 9, 8]),
    'two columns': exchanged_columns([1, 0, *range(2, 10)]),
}


def faulty_files(seed, i, name, accuracy):
    "Rows, labels and the logits with each of the faults"
    rng = np.random.default_rng([seed, i, LISTS.index(name), int(accuracy * 100)])
    rows = synthetic_list('nested' if name == 'nested' else 'meta')
    if name == 'shuffled': rows = ordered(rows, name, rng)
    logits, truth = imaginary(rng, rows, accuracy, True)
    for fault, change in FAULTS.items():
        damaged = logits.copy()
        change(damaged, rng)
        yield fault, rows, damaged, truth


def measure(what, seed, number):
    "Prints every false alarm, or every damaged file that was accepted, and how many files there were"
    looked = found = 0
    for i in range(number):
        if what == 'honest':
            files = [('honest', *honest_file(seed, i))]
        else:
            files = [(f'{fault}, {name}, {accuracy}', rows, logits, truth) for name in LISTS
                     for accuracy in (.8, .9, .95, .99)
                     for fault, rows, logits, truth in faulty_files(seed, i, name, accuracy)]
        for label, rows, logits, truth in files:
            said = refusal(rows, logits, truth)
            looked, found = looked + 1, found + bool(said)
            if bool(said) == (what == 'honest'): print(i, label, said, flush=True)
    print(f'{found} of {looked} refused')


if __name__ == '__main__':
    measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
