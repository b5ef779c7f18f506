// Keeps the page that one looks at up to date: asks for it every two seconds while it is seen, and
// changes in place what is another. Without it each page works as it is.
"use strict";
(() => {
  const EVERY_MS = 2000;
  const SLOWEST_MS = 30000;
  const root = document.documentElement;
  const reach = document.getElementById("reach");
  let etag = root.dataset.etag;
  let failures = 0;
  let timer = 0;
  let asking = null;
  let stopped = false;

  // -- what is kept ------------------------------------------------------------------------------

  // A form in which somebody writes, or has written, is left alone.
  const isKept = (node) =>
    node.nodeType === Node.ELEMENT_NODE &&
    (node.dataset.touched !== undefined ||
      (node.tagName === "FORM" && node.contains(document.activeElement)));

  document.addEventListener("input", (event) => {
    const form = event.target.form;
    if (form) form.dataset.touched = "";
  });

  // -- changing in place -------------------------------------------------------------------------

  const isSameKind = (one, other) =>
    one.nodeType === other.nodeType && one.nodeName === other.nodeName && (one.id || "") === (other.id || "");

  function morph(now, next) {
    if (isKept(now) || now.isEqualNode(next)) return;
    if (now.nodeType !== Node.ELEMENT_NODE) {
      if (now.nodeValue !== next.nodeValue) now.nodeValue = next.nodeValue;
      return;
    }
    morphAttributes(now, next);
    morphChildren(now, next);
  }

  function morphAttributes(now, next) {
    for (const { name } of [...now.attributes]) {
      // What a person has opened stays open.
      if (!next.hasAttribute(name) && name !== "open") now.removeAttribute(name);
    }
    for (const { name, value } of [...next.attributes]) {
      if (now.getAttribute(name) !== value && name !== "open") now.setAttribute(name, value);
    }
  }

  function morphChildren(now, next) {
    const named = new Map();
    for (const child of now.children) if (child.id) named.set(child.id, child);
    let place = now.firstChild;
    for (const wanted of [...next.childNodes]) {
      let found = wanted.id ? named.get(wanted.id) : place;
      if (!wanted.id && place && place.id) {
        // Nothing that has a name of its own is turned into something else.
        found = null;
      }
      if (found && isSameKind(found, wanted)) {
        if (found === place) place = place.nextSibling;
        else now.insertBefore(found, place);
        morph(found, wanted);
      } else {
        now.insertBefore(document.importNode(wanted, true), place);
      }
    }
    while (place) {
      const after = place.nextSibling;
      if (!isKept(place)) place.remove();
      place = after;
    }
  }

  // -- asking ------------------------------------------------------------------------------------

  async function refresh() {
    asking = new AbortController();
    try {
      const response = await fetch(location.href, {
        headers: etag ? { "If-None-Match": etag } : {},
        cache: "no-store",
        redirect: "error",
        signal: asking.signal,
      });
      if (response.status === 304) return seen();
      if (!response.ok) return unseen(`not shown anew: ${response.status}`);
      const text = await response.text();
      if (stopped || document.hidden) return;
      const next = new DOMParser().parseFromString(text, "text/html");
      if (!next.getElementById("main") || !next.documentElement.dataset.etag) return;
      etag = response.headers.get("ETag") || next.documentElement.dataset.etag;
      for (const id of ["main", "asof", "foot"]) {
        const now = document.getElementById(id);
        const other = next.getElementById(id);
        if (now && other) morph(now, other);
      }
      document.title = next.title;
      seen();
      tick();
    } catch (error) {
      if (error.name !== "AbortError") unseen("not reached");
    } finally {
      asking = null;
    }
  }

  function seen() {
    failures = 0;
    if (reach && reach.textContent) reach.textContent = "";
  }

  function unseen(why) {
    failures += 1;
    const said = `${why}, since ${document.getElementById("asof").textContent}`;
    if (reach.textContent !== said) reach.textContent = said;
  }

  async function ask() {
    clearTimeout(timer);
    if (stopped || document.hidden) return;
    if (!asking) await refresh();
    clearTimeout(timer);
    timer = setTimeout(ask, Math.min(EVERY_MS * 2 ** Math.min(failures, 4), SLOWEST_MS));
  }

  // How long something has run goes on between two answers.
  function tick() {
    for (const each of document.querySelectorAll("[data-since]")) {
      const seconds = Math.max((Date.now() - Date.parse(each.dataset.since)) / 1000, 0);
      const [d, h, m, s] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60, seconds % 60].map(Math.floor);
      const text = d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
      if (each.textContent !== text) each.textContent = text;
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(timer);
      if (asking) asking.abort();
    } else ask();
  });
  document.addEventListener("submit", (event) => {
    stopped = true; // the page is left; a form's key must not change between two clicks
    if (asking) asking.abort();
    if (event.target.method === "get") {
      for (const field of event.target.elements) if (field.name && !field.value) field.disabled = true;
    }
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) {
      stopped = false;
      ask();
    }
  });
  if (etag) timer = setTimeout(ask, EVERY_MS);
  setInterval(tick, 1000);
  tick();
})();
