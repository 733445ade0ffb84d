// A served page is fetched again while its run is active; what the reader opened stays open.
const SECONDS = 5;
let shown = document.querySelector("main").innerHTML, etag = null;
async function refresh() {
  const answer = await fetch(location.href, {headers: etag ? {"If-None-Match": etag} : {}}).catch(() => null);
  if (answer?.status == 200) {
    etag = answer.headers.get("ETag");
    const page = new DOMParser().parseFromString(await answer.text(), "text/html"), main = page.querySelector("main");
    if (main && main.innerHTML != shown) {
      shown = main.innerHTML;
      const open = [...document.querySelectorAll("details")].map((each) => each.open);
      document.querySelector("main").replaceWith(main);
      document.querySelectorAll("details").forEach((each, i) => { each.open = open[i] ?? false; });
      document.querySelectorAll("svg[data-hover]").forEach(follow);
    }
    if (!("live" in page.body.dataset)) return;
  }
  setTimeout(refresh, 1000 * SECONDS);
}
setTimeout(refresh, 1000 * SECONDS);
