"use strict";

/* A figure whose address ends with #dark has its colours for a dark ground (edition.figures.style.by_night). */
(() => {
  const root = document.documentElement;
  const dress = (image) => {
    const wanted = image.src.replace(/(#.*)?$/, root.dataset.theme === "dark" ? "#dark" : "");
    if (image.src === wanted) return;
    if (image.complete) image.src = wanted;
    else image.addEventListener("load", () => dress(image), { once: true }); // what is loading is not broken off
  };
  const dressAll = () => document.querySelectorAll('.bd-article img[src*=".svg"]').forEach(dress);
  new MutationObserver(dressAll).observe(root, { attributeFilter: ["data-theme"] });
  dressAll();
})();

/* A figure opens large by a click or by Enter, and closes by Escape, by its button or by a click beside it. */
(() => {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  const close = document.createElement("button");
  close.type = "button";
  close.className = "enlarged-close";
  close.textContent = "Close";
  const room = document.createElement("div");
  room.className = "enlarged-room";
  room.tabIndex = 0; // so that the arrow keys move over a figure that is larger than the window
  dialog.append(close, room);

  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target !== close && event.target.tagName !== "IMG") dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return; // a dialog's own way out, which does not work from within the figure
    event.preventDefault();
    dialog.close();
  });

  const enlarge = (image, name) => {
    const copy = new Image();
    copy.src = image.src;
    copy.alt = image.alt;
    copy.className = image.className;
    room.setAttribute("aria-label", name);
    dialog.setAttribute("aria-label", name);
    room.replaceChildren(copy);
    dialog.showModal(); // which gives the focus back to the figure when it closes
  };

  document.querySelectorAll(".bd-article figure img").forEach((image) => {
    const figure = image.closest("figure");
    const number = figure.querySelector(".caption-number");
    const name = number ? number.textContent.trim() : "Figure";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    button.title = "Enlarge";
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => enlarge(image, name));
  });
  document.body.append(dialog);
})();

/* What the theme leaves to the mouse: names for the toggles of the side bar, and tab stops at formulas that scroll. */
(() => {
  document.querySelectorAll(".bd-links summary").forEach((toggle) => {
    const page = toggle.closest("li").querySelector("a");
    toggle.setAttribute("aria-label", `Pages below ${page ? page.textContent.trim() : "this one"}`);
  });

  const reach = (formula) => {
    const wide = formula.scrollWidth > formula.clientWidth + 1;
    if (wide) formula.tabIndex = 0;
    else formula.removeAttribute("tabindex");
  };
  const watch = new ResizeObserver((changes) => {
    changes.forEach(({ target }) => [target, ...target.querySelectorAll("mjx-container")].forEach(reach));
  });
  document.querySelectorAll(".bd-article div.math").forEach((formula) => watch.observe(formula));
})();

/* The theme binds its two menus to the first button of each kind, which may be hidden: other buttons pass clicks on. */
["primary-toggle", "secondary-toggle"].forEach((name) => {
  const [first, ...others] = document.querySelectorAll(`button.${name}`);
  others.forEach((button) => button.addEventListener("click", () => first.click()));
});

/* One switch a page shows its code or hides it, on this page and the next ones. */
(() => {
  const place = document.querySelector(".article-header-buttons");
  if (!place || !document.querySelector(".bd-article .cell:not(.tag_parameters) .cell_input")) return;
  const root = document.documentElement;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "btn btn-sm code-switch";
  const update = () => {
    const hidden = root.classList.contains("hide-code");
    button.textContent = hidden ? "Show code" : "Hide code";
    document.querySelectorAll(".bd-article details.hide").forEach((details) => (details.open = !hidden));
  };
  button.addEventListener("click", () => {
    root.classList.toggle("hide-code");
    try {
      localStorage.setItem("code", root.classList.contains("hide-code") ? "hidden" : "shown");
    } catch {} // a page that was opened from disk may have no storage
    update();
  });
  place.prepend(button);
  update();
})();
