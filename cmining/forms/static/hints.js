// What is already known by the name that is being typed. The form works without it.
"use strict";
const field = document.getElementById("name");
const known = document.getElementById("known");
let timer = 0;
let asked = 0;

function show(items) {
  known.replaceChildren();
  if (!items.length) return;
  const title = document.createElement("p");
  title.textContent = known.dataset.title;
  const list = document.createElement("ul");
  for (const item of items) {
    const row = document.createElement("li");
    const name = document.createElement("bdi");
    name.textContent = item.label;
    row.append(name, ` (${item.where})`);
    list.append(row);
  }
  known.append(title, list);
}

async function ask() {
  const turn = ++asked;
  const lang = document.documentElement.lang;
  try {
    const answer = await fetch(`/${lang}/hints?name=${encodeURIComponent(field.value)}`);
    if (answer.ok && turn === asked) show(await answer.json());
  } catch { /* without a network there are no hints */ }
}

field.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(ask, 250);
});
