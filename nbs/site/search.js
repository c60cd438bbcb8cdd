// The search box: NAMES (names.js) is a list of [name, page, what it is]. No network, so it works from a folder as well.
const box = document.getElementById('search-box'), found = document.getElementById('search-found');

function rank(name, what, words) {
  const low = name.toLowerCase(), all = low + ' ' + what.toLowerCase();
  if (!words.every(w => all.includes(w))) return -1;
  return low === words[0] ? 3 : low.startsWith(words[0]) ? 2 : low.includes(words[0]) ? 1 : 0;
}

function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = words.length ? NAMES.map(n => [rank(n[0], n[2], words), n]).filter(h => h[0] >= 0) : [];
  hits.sort((a, b) => b[0] - a[0] || a[1][0].length - b[1][0].length);
  found.replaceChildren(...hits.slice(0, 12).map(([, [name, url, what]]) => {
    const li = document.createElement('li'), a = document.createElement('a'), small = document.createElement('small');
    a.href = url; a.textContent = name; small.textContent = what;
    a.append(small); li.append(a);
    return li;
  }));
  if (words.length && !hits.length) found.append(Object.assign(document.createElement('li'), {textContent: 'nothing of that name'}));
  found.hidden = !words.length;
}

function move(event) {
  const links = [...found.querySelectorAll('a')], at = links.indexOf(document.activeElement);
  if (event.key === 'Enter' && event.target === box && links.length) links[0].click();
  else if (event.key === 'ArrowDown') (links[at + 1] || box).focus();
  else if (event.key === 'ArrowUp') (at > 0 ? links[at - 1] : box).focus();
  else if (event.key === 'Escape') { box.value = ''; show(); box.focus(); }
  else return;
  event.preventDefault();
}

box.addEventListener('input', show);
box.parentElement.addEventListener('keydown', move);
addEventListener('keydown', e => { if (e.key === '/' && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) { e.preventDefault(); box.focus(); } });
