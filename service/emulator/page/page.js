// Keeps the page alive: fetches it again each second and exchanges the parts that changed. Without it, reload by hand.
"use strict";

const EVERY_MS = 1000;

async function refresh() {
  const answer = await fetch(location.href, { cache: "no-store" });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    // A part in which somebody is at work by keyboard or mouse is left alone, or a click would fall into the void.
    if (other && other.innerHTML !== part.innerHTML && !part.querySelector(":focus-visible, :active")) {
      exchange(part, other);
    }
  }
  document.body.classList.remove("lost");
}

function exchange(part, other) {
  const places = [...part.querySelectorAll("[tabindex]")].map((scrolled) => scrolled.scrollTop);
  part.replaceChildren(...other.childNodes);
  part.querySelectorAll("[tabindex]").forEach((scrolled, index) => { scrolled.scrollTop = places[index] ?? 0; });
}

async function live() {
  if (!document.hidden) {
    await refresh().catch(() => document.body.classList.add("lost"));
  }
  setTimeout(live, EVERY_MS);
}

setTimeout(live, EVERY_MS);
