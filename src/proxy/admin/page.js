"use strict";

// The token stays in this tab. Without admin.token, links and the search work without this script.
const TOKEN = "s3-proxy-token";
const REFRESH = 5000;

const say = (text) => {
  document.getElementById("said").textContent = text;
};

const send = (url, options) => {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { "X-Requested-With": "s3-proxy" };
  if (token) headers.Authorization = `Bearer ${token}`;
  return fetch(url, { ...options, headers, cache: "no-store", redirect: "error" });
};

// Shows a part of a page of this listener. Scripts and styles in it would not be used.
const show = async (url, id) => {
  const response = await send(url, {});
  const text = await response.text();
  if (response.headers.get("content-type")?.startsWith("text/html") !== true) {
    return say(text);
  }
  if (response.status === 401) sessionStorage.removeItem(TOKEN);
  const found = new DOMParser().parseFromString(text, "text/html").getElementById(id);
  const shown = document.getElementById(id);
  if (found && shown) {
    shown.replaceWith(document.adoptNode(found));
  } else if (id !== "main") {
    await show(url, "main");
  }
};

const failed = (error) => say(`The proxy does not answer: ${error.message}`);

const purge = async (path) => {
  // In the body, because a browser changes paths with dot segments.
  const response = await send("/purge", { method: "POST", body: path });
  say(`${path}: ${response.status} ${await response.text()}`);
  await show(location.href, "main");
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-purge]");
  if (button) {
    const path = button.dataset.purge;
    if (!path.endsWith("*") || confirm(`Purge ${path}?`)) purge(path).catch(failed);
    return;
  }
  const link = event.target.closest("a[href]");
  if (link && sessionStorage.getItem(TOKEN)) {
    event.preventDefault();
    history.pushState(null, "", link.href);
    show(link.href, "main").catch(failed);
  }
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.id === "login") {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, form.elements.token.value.trim());
    say("");
    show(location.href, "main").catch(failed);
  } else if (sessionStorage.getItem(TOKEN)) {
    event.preventDefault();
    const url = new URL(form.action);
    url.search = new URLSearchParams(new FormData(form)).toString();
    history.pushState(null, "", url);
    show(url, "main").catch(failed);
  }
});

addEventListener("popstate", () => show(location.href, "main").catch(failed));

setInterval(() => {
  if (document.visibilityState === "visible" && document.getElementById("status")) {
    show("/", "status").catch(failed);
  }
}, REFRESH);

if (document.getElementById("login") && sessionStorage.getItem(TOKEN)) {
  show(location.href, "main").catch(failed);
}
