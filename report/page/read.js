"use strict";
// Keeps the code beside the text in step with the reading, and says where in the text one is.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const wide = matchMedia("(min-width: 1100px)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const column = $("#code"), files = $(".files"), menu = $("#menu"), contents = $("#contents");
  const line = (script, number) => document.getElementById(`${script}-L${number}`);

  // ---- The code column

  let shown = null, opener = null;

  /** Shows a script, and if they are given marks its lines from first to last and scrolls to them. */
  function show(script, first, last = first) {
    const changed = script !== shown;
    if (changed) {
      for (const section of $$(".script")) section.classList.toggle("shown", section.id === script);
      for (const tab of $$("#code nav a")) {
        if (tab.textContent === script) tab.setAttribute("aria-current", "true");
        else tab.removeAttribute("aria-current");
      }
      shown = script;
    }
    for (const marked of $$(".on", files)) marked.classList.remove("on");
    for (let i = first; i <= last; i++) line(script, i)?.classList.add("on");
    const scroller = wide.matches ? files : column;
    if (!first) {
      if (changed) scroller.scrollTop = 0;
      return;
    }
    // In the upper third; as much of it as fits if it is long.
    const box = scroller.getBoundingClientRect(), top = line(script, first).getBoundingClientRect().top - box.top;
    const height = line(script, last).getBoundingClientRect().bottom - box.top - top;
    const above = Math.max(40, Math.min(box.height / 3, (box.height - height) / 2));
    scroller.scrollTo({top: scroller.scrollTop + top - above, behavior: changed || still.matches ? "auto" : "smooth"});
  }

  function showQuote(quote) {
    show(quote.dataset.script, ...quote.dataset.lines.split("-").map(Number));
  }

  /** On a narrow screen the script lies over the text until it is shut, by its button, Escape or the way back. */
  function open() {
    if (column.classList.contains("open")) return;
    opener = document.activeElement;
    history.pushState("code", "");
    column.classList.add("open");
    $(".text").inert = true;
    $("#shut").focus({preventScroll: true});
  }

  function shut() {
    if (!column?.classList.contains("open")) return;
    column.classList.remove("open");
    $(".text").inert = false;
    opener?.focus({preventScroll: true});
    if (history.state === "code") history.back();
  }

  /** Follows #vae.py or #vae.py-L9; false if it is something else. */
  function toCode(hash) {
    const [, script, number] = /^#(\w+\.py)(?:-L(\d+))?$/.exec(hash) ?? [];
    if (!script || !document.getElementById(script)) return false;
    if (!wide.matches) open();
    show(script, number && Number(number));
    return true;
  }

  // ---- What the reader has reached

  const headings = $$("main h2, main h3");
  // Where the code column changes: sections, quotations and, until a section's first quotation, names of functions.
  let quoted = false;
  const stops = $$("main h2[data-script], .quote, main :not(figcaption) > a[href^='#'][href*='.py-L']").filter(place => {
    if (place.matches("h2")) quoted = false;
    if (place.matches(".quote")) quoted = true;
    return !place.matches("a") || !quoted;
  });
  let stop, here;  // undefined: nothing yet

  /** The last of the elements whose upper edge lies above y. They stand in the order of the text. */
  function reached(all, y) {
    const elements = all.filter(element => !element.closest("details:not([open])"));
    let low = 0, high = elements.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (elements[middle].getBoundingClientRect().top < y) low = middle + 1;
      else high = middle;
    }
    return elements[low - 1] ?? null;
  }

  function follow() {
    const heading = reached(headings, innerHeight * 0.15);
    if (heading !== here) {
      here = heading;
      for (const link of $$("#contents ol a")) {
        if (heading && decodeURIComponent(link.hash) === `#${heading.id}`) {
          link.setAttribute("aria-current", "location");
          if (contents.offsetParent) link.scrollIntoView({block: "nearest"});
        } else link.removeAttribute("aria-current");
      }
      $("#where").textContent = heading ? heading.textContent.replace(/^#/, "") : "Contents";
    }
    const next = reached(stops, innerHeight * 0.55);
    if (next === stop || !column) return;
    stop = next;
    for (const quote of $$(".quote")) quote.classList.toggle("now", quote === stop);
    if (!wide.matches) return;
    if (stop?.matches(".quote")) showQuote(stop);
    else if (stop?.hash) toCode(stop.hash);
    else show(stop?.dataset.script ?? $("#code nav a").textContent);
  }

  let waiting = false;
  function soon() {
    if (!waiting) requestAnimationFrame(() => { waiting = false; follow(); });
    waiting = true;
  }

  // ---- Clicks and keys

  function toggle(expanded) {
    menu.setAttribute("aria-expanded", expanded);
    if (expanded) $("[aria-current=location]", contents)?.scrollIntoView({block: "center"});
  }

  document.addEventListener("click", event => {
    const link = event.target.closest("a"), quote = event.target.closest(".quote");
    if (event.target.closest("#menu")) return toggle(menu.getAttribute("aria-expanded") !== "true");
    if (!event.target.closest("#contents") || link) toggle(false);
    if (event.target.closest("#shut")) return shut();
    if (link && quote) {  // the file and line above it: all of its lines
      event.preventDefault();
      if (!wide.matches) open();
      showQuote(quote);
    } else if (link && link.pathname === location.pathname && !event.ctrlKey && !event.metaKey && toCode(link.hash)) {
      event.preventDefault();
    } else if (quote && wide.matches && !String(getSelection())) showQuote(quote);
  });
  document.addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    if (menu.getAttribute("aria-expanded") === "true") { toggle(false); menu.focus(); } else shut();
  });

  /** Below each quoted block of a narrow page: its whole function, made when it is asked for. */
  for (const quote of $$(".quote")) {
    const whole = document.createElement("details");
    whole.className = "whole";
    whole.innerHTML = "<summary>the whole function</summary>";
    whole.addEventListener("toggle", () => {
      if ($(".code", whole)) return;
      const [first, last] = quote.dataset.whole.split("-").map(Number);
      const [from, to] = quote.dataset.lines.split("-").map(Number);
      const pre = document.createElement("pre"), code = pre.appendChild(document.createElement("code"));
      pre.className = "code";
      pre.style.counterReset = `line ${first - 1}`;
      for (let i = first; i <= last; i++) {
        const copy = line(quote.dataset.script, i).cloneNode(true);
        copy.removeAttribute("id");
        copy.classList.toggle("on", i >= from && i <= to);
        code.append(copy);
      }
      whole.append(pre);
    });
    quote.append(whole);
  }

  /** What scrolls sideways can be reached with the keyboard. */
  function scrollers() {
    for (const box of $$(".formula, .table, pre")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = $$("main details:not([open]):not(.whole)");
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of folded) details.open = false; });
  addEventListener("scroll", soon, {passive: true});
  addEventListener("resize", () => { shut(); stop = undefined; scrollers(); soon(); });
  addEventListener("popstate", shut);
  addEventListener("hashchange", () => toCode(location.hash));
  document.addEventListener("toggle", () => { scrollers(); soon(); }, true);
  scrollers();
  follow();
  toCode(location.hash);
})();
