"""Damaged and hostile inputs: each ends right or refused in a sentence that helps, and the terminal counts how."""
import re
from collections import Counter

from asc.core import InputError

# A refusal says what to do: one of these words begins its advice.
REMEDY = re.compile(
    r'\b(give|write|take|use|choose|save|keep|mend|check|fetch|download|unpack|export|train|make|pack|convert|resample|'
    r'move|remove|rename|add|leave|bring|name|put|open|install|divide|split|run|say|pass|state|copy|set|free|list|read|'
    r'replace|restore|repair|need|needs|needed)\b', re.I)


def outcome(call,      # the door, with the damaged input already in its hands
            names=(),  # what a refusal names: the file or the parameter
            right=None # value -> whether it is the true answer; None: only a refusal is
            ) -> str:  # 'right' or 'refused'
    "How a door ended; AssertionError where it did neither"
    try: value = call()
    except InputError as error:
        sentence = str(error)
        for name in names: assert str(name) in sentence, f'the refusal does not name {name}: {sentence}'
        assert REMEDY.search(sentence), f'the refusal says nothing of what to do: {sentence}'
        return 'refused'
    assert right is not None, f'accepted: {value!r:.200}'
    assert right(value), f'a wrong answer: {value!r:.200}'
    return 'right'


def table(reports):
    "Lines of a table, kind by kind, of how damaged inputs ended; `reports` are pytest's"
    counts = Counter()
    for report in reports:
        ended = dict(report.user_properties)
        if 'damage' in ended: counts[ended['damage'], ended.get('ended', 'neither')] += 1
    kinds = sorted({kind for kind, _ in counts})
    ends = ('right', 'refused', 'neither')
    rows = [(kind, *(counts[kind, end] for end in ends)) for kind in kinds]
    total = ('all', *(sum(row[1 + i] for row in rows) for i in range(len(ends))))
    lines = [('damaged input', *ends), *rows, total]
    return [f'{kind:<40}' + ''.join(f'{number:>10}' for number in numbers) for kind, *numbers in lines]
