"use strict";
// Keeps the code beside the text in step with the reading, and says where in the text one is.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const wide = matchMedia("(min-width: 1100px)");
  const column = $("#code"), files = $(".files"), contents = $("#contents");

  // ---- What the reader has reached

  /** Calls reached with the last of the elements whose upper edge lies in the upper part of the window, in percent. */
  function watch(elements, part, reached) {
    const above = new Set();
    let last = null;  // nothing yet; undefined: the reader is above the first
    const observer = new IntersectionObserver(entries => {
      for (const {target, isIntersecting} of entries) {
        if (isIntersecting) above.add(target);
        else above.delete(target);
      }
      const now = elements.findLast(element => above.has(element));
      if (now !== last) reached(now);
      last = now;
    }, {rootMargin: `999999px 0px ${part - 100}% 0px`});  // all of the page that lies above, too
    for (const element of elements) observer.observe(element);
  }

  watch($$("main h2, main h3"), 15, heading => {
    for (const link of $$("#contents ol a")) {
      const here = heading && decodeURIComponent(link.hash) === `#${heading.id}`;
      link.ariaCurrent = here ? "location" : null;
      if (here) link.scrollIntoView({block: "nearest"});
    }
    $("#where").textContent = heading ? heading.textContent.replace(/^#/, "") : "Contents";
  });
  contents.addEventListener("toggle", () => $("[aria-current=location]", contents)?.scrollIntoView({block: "center"}));
  contents.addEventListener("click", event => { if (event.target.closest("a")) contents.hidePopover(); });

  // ---- What scrolls sideways can be reached with the keyboard

  const sizes = new ResizeObserver(entries => {
    for (const {target: box} of entries) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  });
  for (const box of $$(".formula, .table, pre")) sizes.observe(box);

  // ---- Answers are printed, also by a browser in which page.css cannot unfold them

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = $$("main details:not([open]):not(.whole)");
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of folded) details.open = false; });

  // ---- The code column

  if (!column) return;
  const line = (script, number) => $("code", document.getElementById(script)).children[number - 1];
  const range = text => text.split("-").map(Number);
  let shown = null;

  /** Shows a script, and if they are given marks its lines from first to last and scrolls to them. */
  function show(script, first, last = first) {
    const changed = script !== shown;
    shown = script;
    for (const section of $$(".script")) section.classList.toggle("shown", section.id === script);
    for (const tab of $$("#code nav a")) tab.ariaCurrent = tab.textContent === script ? "true" : null;
    for (const marked of $$(".on", files)) marked.classList.remove("on");
    for (let i = first; i <= last; i++) line(script, i)?.classList.add("on");
    if (!wide.matches) column.togglePopover(true);
    if (first) line(script, first)?.scrollIntoView({behavior: changed ? "instant" : "auto"});
    else if (changed) files.scrollTop = column.scrollTop = 0;
  }

  function showQuote(quote) {
    mark(quote);
    show(quote.dataset.script, ...range(quote.dataset.lines));
  }

  function mark(quote) {
    for (const other of $$(".quote")) other.classList.toggle("now", other === quote);
  }

  /** Follows #vae.py or #vae.py-L9; false if it is something else. */
  function toCode(hash) {
    const [, script, number] = /^#(\w+\.py)(?:-L(\d+))?$/.exec(hash) ?? [];
    if (!$$(".script").some(section => section.id === script)) return false;
    show(script, number && Number(number));
    return true;
  }

  // Where the code column changes: sections, quotations and, until a section's first quotation, names of functions.
  let quoted = false;
  const stops = $$("main h2[data-script], .quote, main :not(figcaption) > a[href^='#'][href*='.py-']").filter(place => {
    if (!place.matches("a")) quoted = place.matches(".quote");
    return !place.matches("a") || !quoted;
  });
  let stop = null;

  function follow(next) {
    const asked = stop === null && toCode(location.hash);  // the address comes before the place in the text
    stop = next;
    mark(stop);
    if (asked || !wide.matches) return;
    if (stop?.matches(".quote")) showQuote(stop);
    else if (stop?.hash) toCode(stop.hash);
    else show(stop?.dataset.script ?? $(".script").id);
  }

  watch(stops, 55, follow);
  let cited = null;  // the link by which the keyboard went into the code
  addEventListener("hashchange", () => toCode(location.hash));
  document.addEventListener("click", event => {
    const link = event.target.closest("a"), quote = event.target.closest(".quote");
    if (event.ctrlKey || event.metaKey) return;
    if (quote && (link || wide.matches && !String(getSelection()))) showQuote(quote);
    else if (link?.pathname !== location.pathname || !toCode(link.hash)) return;
    event.preventDefault();
    if (event.detail || !wide.matches) return;
    cited = link;  // by the keyboard: into the code, and with Escape back
    files.focus({preventScroll: true});
  });
  files.addEventListener("keydown", event => { if (event.key === "Escape") cited?.focus(); });

  // On a narrow screen the script lies over the text until it is shut, by its button, Escape or the way back.
  column.addEventListener("toggle", ({newState}) => {
    if (newState === "open") {
      history.pushState("code", "");
      $("#shut").focus({preventScroll: true});
    } else if (history.state === "code") history.back();
  });
  addEventListener("popstate", () => column.togglePopover(false));
  wide.addEventListener("change", () => {
    column.togglePopover(false);
    follow(stop);
  });

  /** Below each quoted block of a narrow page: its whole function, made when it is asked for. */
  for (const quote of $$(".quote")) {
    const whole = document.createElement("details");
    whole.className = "whole";
    whole.innerHTML = "<summary>the whole function</summary>";
    whole.addEventListener("toggle", () => {
      const [first, last] = range(quote.dataset.whole), [from, to] = range(quote.dataset.lines);
      const pre = $(".code", quote).cloneNode(true), code = pre.firstChild;
      pre.style.counterReset = `line ${first - 1}`;
      code.replaceChildren();
      for (let i = first; i <= last; i++) {
        const copy = code.appendChild(line(quote.dataset.script, i).cloneNode(true));
        copy.removeAttribute("id");
        copy.classList.toggle("on", i >= from && i <= to);
      }
      whole.append(pre);
    }, {once: true});
    quote.append(whole);
  }
})();
