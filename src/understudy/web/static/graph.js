// Choosing nodes, following edges, and hiding what has little influence. Without it nodes are links to their words.
(() => {
  const graph = document.querySelector(".graph");
  if (!graph) return;
  const nodes = new Map([...graph.querySelectorAll(".node")].map((node) => [node.dataset.id, node]));
  const edges = [...graph.querySelectorAll(".edges path")];
  const scroll = graph.parentElement;
  const panel = document.getElementById("chosen");
  const hint = panel.firstElementChild;
  const words = document.getElementById("words");
  const drawn = new Map([...nodes.keys()].map((id) => [id, []]));
  for (const edge of edges) {
    drawn.get(edge.dataset.from).push(edge);
    drawn.get(edge.dataset.to).push(edge);
  }
  let chosen = null;
  let cut = 1;

  const hidden = (id) => nodes.get(id).classList.contains("off");

  function light(id) {
    for (const lit of graph.querySelectorAll(".on, .near, .is-chosen")) lit.classList.remove("on", "near", "is-chosen");
    graph.classList.toggle("is-lit", id !== null);
    if (id === null) return;
    nodes.get(id).classList.add("is-chosen");
    for (const edge of drawn.get(id)) {
      edge.classList.add("on");
      nodes.get(edge.dataset.from === id ? edge.dataset.to : edge.dataset.from).classList.add("near");
    }
  }

  function tell(id) {
    if (id === null) return panel.replaceChildren(hint);
    const copy = document.getElementById(`n${id}`).cloneNode(true);
    copy.removeAttribute("id");
    panel.replaceChildren(copy);
    panel.scrollTop = 0;
  }

  function show(id) {
    light(id);
    tell(id);
  }

  function choose(id, focus) {
    chosen = id;
    show(id);
    if (id === null) return;
    const at = nodes.get(id).getBoundingClientRect();
    const frame = scroll.getBoundingClientRect();
    if (at.left < frame.left + 30 || at.right > frame.right - 30) {
      scroll.scrollLeft += at.left - frame.left - frame.width / 2;
    }
    if (focus) nodes.get(id).focus({ preventScroll: true });
  }

  // The neighbour over the strongest edge; `up` follows what a node adds to, else what adds to it.
  function neighbour(id, up) {
    const [here, there] = up ? ["from", "to"] : ["to", "from"];
    const way = document.getElementById(`n${id}`).querySelectorAll(".columns > div");
    const title = up ? "Strongest out" : "Strongest in";
    for (const list of way) {
      if (!list.querySelector("h4").textContent.startsWith(title)) continue;
      for (const link of list.querySelectorAll("a")) {
        const other = link.dataset.id;
        if (nodes.has(other) && !hidden(other) && drawn.get(id).some((e) => e.dataset[here] === id && e.dataset[there] === other)) {
          return other;
        }
      }
    }
    return null;
  }

  function beside(id, step) {
    const box = (node) => node.querySelector(".reach");
    const y = Number(box(nodes.get(id)).getAttribute("cy"));
    const x = Number(box(nodes.get(id)).getAttribute("cx"));
    let best = null;
    for (const [other, node] of nodes) {
      if (other === id || hidden(other)) continue;
      const dx = (Number(box(node).getAttribute("cx")) - x) * step;
      const dy = Math.abs(Number(box(node).getAttribute("cy")) - y);
      if (dx <= 0 || dy > 40) continue;
      if (best === null || dx + 2 * dy < best[1]) best = [other, dx + 2 * dy];
    }
    return best && best[0];
  }

  function hide() {
    for (const [id, node] of nodes) {
      const always = node.classList.contains("is-input") || node.classList.contains("is-target");
      node.classList.toggle("off", !always && cut < 1 && Number(node.dataset.rank) > cut);
    }
    for (const edge of edges) edge.classList.toggle("off", hidden(edge.dataset.from) || hidden(edge.dataset.to));
    const shown = [...nodes.values()].filter((node) => !node.classList.contains("off")).length;
    document.getElementById("cut-said").textContent = `${Math.round(100 * cut)}%: ${shown} of ${nodes.size} nodes`;
    if (chosen !== null && hidden(chosen)) choose(null);
  }

  graph.addEventListener("pointerover", (event) => {
    const node = event.target.closest(".node");
    if (node && event.pointerType === "mouse") show(node.dataset.id);
  });
  graph.addEventListener("pointerleave", () => show(chosen));
  graph.addEventListener("focusin", (event) => {
    const node = event.target.closest(".node");
    if (node && node.matches(":focus-visible")) choose(node.dataset.id);
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[data-id]");
    if (link && nodes.has(link.dataset.id)) {
      event.preventDefault();
      const again = link.classList.contains("node") && chosen === link.dataset.id && event.detail > 0;
      choose(again ? null : link.dataset.id, panel.contains(link) && event.detail === 0);
    } else if (graph.contains(event.target)) choose(null);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return choose(null);
    const node = document.activeElement.closest && document.activeElement.closest(".node");
    if (!node) return;
    const id = node.dataset.id;
    const keys = {
      ArrowUp: () => neighbour(id, true), ArrowDown: () => neighbour(id, false),
      ArrowLeft: () => beside(id, -1), ArrowRight: () => beside(id, 1),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    const next = keys[event.key]();
    if (next !== null) choose(next, true);
  });
  document.getElementById("cut").addEventListener("input", (event) => {
    cut = Number(event.target.value) / 100;
    hide();
  });

  document.getElementById("graph-controls").hidden = false;
  hide();
  scroll.scrollLeft = scroll.scrollWidth;
  const asked = /^#n(\d+)$/.exec(location.hash);
  const first = asked && nodes.has(asked[1]) ? asked[1] : graph.querySelector(".is-target")?.dataset.id ?? null;
  if (asked || matchMedia("(min-width: 68rem)").matches) choose(first);
  else light(first);
  if (asked && words) document.getElementById("graph").scrollIntoView();
})();
