"use strict";
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  const root = document.documentElement, look = one("look"), help = one("help");
  const say = (text) => { one("said").textContent = text; };
  all("[data-js]").forEach((part) => { part.hidden = false; });

  // Pictures: one of all can be reached with Tab, the others with keys.
  const visible = (part) => !part.closest("[hidden]");
  const pictures = () => all(".row summary").filter(visible);
  let current = null, shown = null;
  const choose = (summary, focus) => {
    if (!summary) return;
    if (current) current.tabIndex = -1;
    current = summary;
    current.tabIndex = 0;
    if (focus) { current.focus(); current.scrollIntoView({ block: "nearest" }); }
  };
  all(".rows").forEach((list) => all("summary", list).forEach((summary, place) => { summary.tabIndex = place ? -1 : 0; }));
  const move = (step) => {
    const list = pictures();
    const from = list.indexOf(current);
    const next = list[from < 0 ? (step > 0 ? 0 : list.length - 1) : Math.min(Math.max(from + step, 0), list.length - 1)];
    choose(next, !look.open);
    if (look.open) show();
  };
  const queries = () => all(".query").filter(visible);
  const turn = (step) => {
    const list = queries();
    if (!list.length) return;
    const within = current && current.closest(".query");
    const from = within ? list.indexOf(within) : -1;
    const next = list[from < 0 ? (step > 0 ? 0 : list.length - 1) : Math.min(Math.max(from + step, 0), list.length - 1)];
    next.scrollIntoView({ block: "start" });
    choose(next.querySelector(".row summary"), !look.open);
    if (look.open) show();
  };

  // The dialog shows what the row has.
  const show = () => {
    if (!current) return;
    shown = current;
    const inside = one("look-in"), row = current.closest(".row");
    inside.replaceChildren();
    const picture = current.querySelector(".pic").cloneNode(true);
    const name = row.closest(".query").querySelector("h2").textContent;
    one("look-title").textContent = `${name}, rank ${current.querySelector(".rank").textContent}`;
    const line = document.createElement("p");
    all(".score, .err, .mark", current).forEach((part) => line.append(part.cloneNode(true), " "));
    inside.append(picture, line);
    const said = current.querySelector(".said");
    if (said) inside.append(said.cloneNode(true));
    inside.append(row.querySelector(".more").cloneNode(true));
    if (!look.open) look.showModal();
  };
  document.addEventListener("click", (event) => {
    const summary = event.target.closest(".row summary");
    if (summary) { event.preventDefault(); choose(summary, false); show(); return; }
    const button = event.target.closest("[data-do]");
    if (button) actions[button.dataset.do](button);
  });
  // The browser first gives the focus back to the picture that was opened.
  look.addEventListener("close", () => choose(shown, true));
  document.addEventListener("focusin", (event) => {
    if (event.target.matches(".row summary")) choose(event.target, false);
  });

  // Grid or table, light or dark.
  const actions = {
    close: (button) => button.closest("dialog").close(),
    prev: () => move(-1),
    next: () => move(1),
    help: () => { if (!help.open) help.showModal(); },
    theme: () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
    },
    view: () => {
      const table = root.classList.toggle("as-table");
      all("[data-do=view]").forEach((button) => button.setAttribute("aria-pressed", table));
    },
  };

  // Order.
  const keys = {
    rank: (row) => +row.querySelector(".rank").textContent,
    low: (row) => -row.dataset.low,
    index: (row) => +row.dataset.index,
  };
  all("[data-sort]").forEach((select) => select.addEventListener("change", () => {
    const list = one(select.dataset.sort), key = keys[select.value];
    list.classList.toggle("sorted", select.value !== "rank");
    list.append(...[...list.children].sort((a, b) => key(a) - key(b)));
  }));

  // Filter.
  const filter = one("filter");
  if (filter) filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    all(".cards li").forEach((card) => {
      const text = all(".name, .said", card).map((part) => part.textContent).join(" ").toLowerCase();
      const fits = words.every((word) => text.includes(word));
      card.hidden = !fits;
      one(card.dataset.query).hidden = !fits;
      found += fits;
    });
    one("matches").textContent = words.length ? `${found} found` : "";
  });

  // Copies.
  const add = (code) => {
    if (code.nextElementSibling && code.nextElementSibling.matches(".copy")) return;
    const button = document.createElement("button");
    button.type = "button"; button.className = "copy"; button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy ${code.textContent}`);
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(code.textContent); say("Copied"); button.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(code); say("Selected: copy with Ctrl-C"); }
    });
    code.after(button);
  };
  all(".commands [data-copy]").forEach(add);
  all("details").forEach((part) => part.addEventListener("toggle", () => { if (part.open) all(".outputs [data-copy]", part).forEach(add); }));

  // Keys.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || help.open) return;
    const typing = event.target.matches("input, select, textarea");
    if (typing) { if (event.key === "Escape") event.target.blur(); return; }
    const todo = { j: () => move(1), k: () => move(-1), n: () => turn(1), p: () => turn(-1), "/": () => filter && filter.focus(), t: actions.view, "?": actions.help };
    if (event.target.matches(".row summary")) Object.assign(todo, { ArrowRight: () => move(1), ArrowLeft: () => move(-1) });
    if (todo[event.key]) { event.preventDefault(); todo[event.key](); }
  });

  // Paper has no closed parts.
  let closed = [];
  addEventListener("beforeprint", () => { closed = all("details:not([open])"); closed.forEach((part) => { part.open = true; }); });
  addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
})();
