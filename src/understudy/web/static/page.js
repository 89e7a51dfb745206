// Filter, sort and deep links over the features. The page reads well without it: everything is in the document.
"use strict";
(() => {
  const layers = [...document.querySelectorAll(".layer")];
  const features = [...document.querySelectorAll(".feature")];
  const controls = document.getElementById("controls");
  const byId = new Map(features.map((feature) => [feature.querySelector(".feature-body").id, feature]));
  const total = features.length;

  // Text as it was before blanks became glyphs; built on the first search.
  const texts = new Map();
  function textOf(feature) {
    if (!texts.has(feature)) {
      const text = feature.textContent.replaceAll("·", " ").replaceAll("↵", "\n").replaceAll("⇥", "\t");
      texts.set(feature, text.toLowerCase());
    }
    return texts.get(feature);
  }

  function filter(words) {
    const wanted = words.toLowerCase();
    const exact = [...byId.keys()].find((id) => id.toLowerCase() === wanted.trim().replace(/^#/, ""));
    let found = 0;
    for (const feature of features) {
      const hit = exact ? byId.get(exact) === feature : !wanted.trim() || textOf(feature).includes(wanted);
      feature.hidden = !hit;
      found += hit;
    }
    layers.forEach((layer, i) => {
      const hits = layer.querySelectorAll(".feature:not([hidden])").length;
      layer.hidden = hits === 0;
      if (wanted.trim()) layer.open = hits > 0;
      else layer.open = i === 0;
    });
    const said = wanted.trim() ? `${found} of ${total} features` : `${total} features`;
    document.getElementById("found").textContent = said;
  }

  function sort(key) {
    for (const layer of layers) {
      const list = layer.querySelector(".feature-list");
      const down = key === "latent" ? -1 : 1;
      const order = (f) => (key ? down * Number(f.dataset[key]) : -features.indexOf(f));
      const sorted = [...list.children].map((f) => [order(f), f]).sort((a, b) => b[0] - a[0]);
      list.append(...sorted.map(([, f]) => f));
    }
  }

  function follow() {
    const feature = byId.get(decodeURIComponent(location.hash.slice(1)));
    if (!feature) return;
    if (feature.hidden) {
      document.getElementById("filter").value = "";
      filter("");
    }
    feature.closest(".layer").open = true;
    feature.open = true;
    feature.scrollIntoView({ block: "start" });
  }

  if (controls) {
    controls.hidden = false;
    let waiting;
    document.getElementById("filter").addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => filter(event.target.value), 90);
    });
    document.getElementById("sort").addEventListener("change", (event) => sort(event.target.value));
    addEventListener("hashchange", follow);
    follow();
  }

  // A bubble with the activation under the pointer or finger. Titles say the same without this script.
  const bubble = document.createElement("div");
  bubble.className = "bubble";
  bubble.hidden = true;
  bubble.setAttribute("role", "status");
  document.body.append(bubble);
  function show(event) {
    const token = event.target.closest && event.target.closest(".text b, .snippet b");
    if (!token) {
      bubble.hidden = true;
      return;
    }
    if (token.title) {
      token.dataset.activation = token.title;
      token.removeAttribute("title");
    }
    bubble.textContent = `activation ${token.dataset.activation}`;
    bubble.hidden = false;
    const at = token.getBoundingClientRect();
    const left = Math.min(at.left, document.documentElement.clientWidth - bubble.offsetWidth - 8);
    bubble.style.left = `${Math.max(8, left)}px`;
    bubble.style.top = `${at.top > 36 ? at.top - bubble.offsetHeight - 4 : at.bottom + 4}px`;
  }
  document.addEventListener("pointerover", show);
  document.addEventListener("click", show);
  addEventListener("scroll", () => { bubble.hidden = true; }, { passive: true });
})();
